"""Twice as many requests as can be computed: what is still answered, what the others are told, and whether it is true."""

import http.client
import re
import threading
import time
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.serving.arrivals import find_maximum
from benchmarks.serving.candidates import Running
from benchmarks.serving.load import Generation, OpenLoop, run_closed, run_open
from benchmarks.serving.measure import be_quiet, ready
from benchmarks.serving.models import BenchModel
from benchmarks.serving.ours import Shape, switchyard
from benchmarks.serving.outcome import Load, Question
from benchmarks.serving.results import Overload, Plan, Say
from serving.contracts import ModelServingConfig

TIMES = 2.0
"""How much of its maximum is offered."""

_BATCH_SIZE = 8
_CONNECTIONS = 512  # more than may be under way, so that nobody queues in the generator
_PATIENT_CLIENTS = 8
_MOST_ATTEMPTS = 6
_SAMPLE_SECONDS = 0.2
_CROWD_SECONDS = 0.02
_CROWD = 2.0
_LONGEST_WAIT = 10
_UNDER_WAY = re.compile(rb"^switchyard_requests_under_way\{[^}]*\} (\S+)$", re.MULTILINE)


def run_overload(model: BenchModel, plan: Plan, say: Say) -> Overload:
    """Ours with a model that takes its time, for twice as long as another open loop.

    It is not compiled: that forest would be as quick as the rest, and the generator the first at its end.
    """
    limit = ModelServingConfig().max_concurrent_requests
    shape = Shape(config={"batch_size": _BATCH_SIZE, "compiled": False})
    with ready(switchyard(shape=shape), model, run_closed) as server:
        maximum = find_maximum(server, plan)
        be_quiet(server)
        watch = _Watch(server)
        arrivals = OpenLoop(TIMES * maximum)
        generation = Generation(server.target, _CONNECTIONS, 2 * plan.open_seconds, arrivals)
        try:
            watch.until(lambda: generation.is_over)
            load = generation.load()
        finally:
            generation.end()
            watch.join()
        be_quiet(server)
        refused, served = _crowd(server, limit)
    say(
        f"overload: {load.rate:,.0f}/s of {maximum:,.0f}/s at {TIMES:.0%}, {dict(load.errors)}, "
        f"refused after {(load.refused_p99 or 0) * 1e3:.1f} ms (p99), crowd: {served} of {refused} served as told"
    )
    return Overload(
        title=model.title,
        maximum=maximum,
        load=load,
        limit=limit,
        under_way=watch.under_way,
        attempts=watch.attempts,
        unserved=watch.unserved,
        crowd_refused=refused,
        crowd_served=served,
    )


class _Watch:
    """Samples the metric of what is under way, while patient clients come, wait as they are told and come again."""

    def __init__(self, server: Running) -> None:
        self.under_way: list[float] = []
        self.attempts: list[int] = []
        self.unserved = 0
        self._server = server
        self._over = threading.Event()
        self._clients = [threading.Thread(target=self._be_patient, args=(k,)) for k in range(_PATIENT_CLIENTS)]

    def until(self, is_over: Callable[[], bool]) -> None:
        """Watch until then."""
        for each in self._clients:
            each.start()
        while not is_over():
            sample = _under_way(self._server)
            if sample is not None:
                self.under_way.append(sample)
            time.sleep(_SAMPLE_SECONDS)

    def join(self) -> None:
        """Let the clients go."""
        self._over.set()
        for each in self._clients:
            if each.ident is not None:
                each.join()

    def _be_patient(self, number: int) -> None:
        question = self._server.target.questions[number]
        while not self._over.is_set():
            attempt = 0
            while not self._over.is_set():
                attempt += 1
                status, told = _ask(self._server, question)
                if status == 200:
                    self.attempts.append(attempt)
                    break
                if attempt == _MOST_ATTEMPTS:
                    self.unserved += 1
                    break
                self._over.wait(told)


def grows(under_way: Sequence[float]) -> bool:
    """Whether there is more under way in the last third than in the second, beyond what it varies by itself."""
    third = len(under_way) // 3
    if third == 0:
        return False
    before, after = under_way[third : 2 * third], under_way[-third:]
    return median(after) > 1.2 * median(before) + _BATCH_SIZE


def _under_way(server: Running) -> float | None:
    """Requests that workers owe an answer to; None when even this was not answered."""
    connection = http.client.HTTPConnection(*server.target.address, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return max((float(each) for each in _UNDER_WAY.findall(connection.getresponse().read())), default=None)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _ask(server: Running, question: Question) -> tuple[int, int]:
    """Status, and the seconds that it says to wait: 1 where it does not say."""
    connection = http.client.HTTPConnection(*server.target.address, timeout=35)
    try:
        connection.request("POST", question.path, question.body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, int(answer.headers.get("retry-after", "1"))
    except (OSError, http.client.HTTPException):
        return 0, 1
    finally:
        connection.close()


def _crowd(server: Running, limit: int) -> tuple[int, int]:
    """Twice as many as may be under way come at once; the refused wait as told and come again, at once too.

    How many were refused, and how many of them were served on their return.
    """
    first = _burst(server, _CROWD * limit / _CROWD_SECONDS)
    refused = first.errors.get("429", 0)
    if not refused:
        return 0, 0
    waits = [int(told) for told in first.retry_after if told.isdigit()]
    time.sleep(min(max(waits, default=1), _LONGEST_WAIT))
    again = _burst(server, refused / _CROWD_SECONDS)
    return again.answered_in_all + sum(again.errors.values()), again.answered_in_all


def _burst(server: Running, rate: float) -> Load:
    return run_open(server.target, _CONNECTIONS, _CROWD_SECONDS, OpenLoop(rate))
