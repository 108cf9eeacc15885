"""One measurement of one server: answers compared first, then load, and what it took of the machine."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx
import psutil

from benchmarks.serving.candidates import Candidate, Running, Said, running
from benchmarks.serving.models import BenchModel
from benchmarks.serving.outcome import Load, Question, Target
from benchmarks.waiting import NotInTime, wait_for
from serving.spool import SpoolState, spool_state

Generator = Callable[[Target, int, float], Load]
"""Target, connections, seconds."""

_START_SECONDS = 90.0
_SAME_WITHIN = 1e-9
_AT_ONCE = 32
_WARM_UP_SECONDS = 1.0
_QUIET_SECONDS = 60.0
_CRUMBS = 256 * 2**10  # bytes
_JSON = {"content-type": "application/json"}


class WrongAnswers(Exception):
    """A server computes something else than scikit-learn: its speed does not matter."""


class NotStarted(Exception):
    """A server did not come up; says in its own words why."""


@dataclass(frozen=True)
class Figures:
    """What one server did under one load."""

    load: Load
    cpu_per_request: float  # seconds of its whole process tree
    pss: int | None  # bytes of its whole process tree after the load; None where the system does not tell
    others: float  # share of one core that neither the server nor the generator took: somebody else


@contextmanager
def ready(candidate: Candidate, model: BenchModel, generator: Generator) -> Iterator[Running]:
    """A server that has answered everything as scikit-learn does, and is warm and quiet.

    Raises:
        WrongAnswers: it has not.
        NotStarted: it did not come up.
        NotInstalled: there is no environment to start it in.
    """
    with running(candidate, model) as server:
        _wait_ready(server)
        compare_answers(server, model)
        generator(server.target, _AT_ONCE, _WARM_UP_SECONDS)
        be_quiet(server)
        yield server


def figures(server: Running, load: Callable[[], Load]) -> Figures:
    """What came of this load, and what it took. Waits first until nothing of an earlier one is left to do."""
    be_quiet(server)
    began, machine, used = time.monotonic(), _machine_seconds(), cpu_seconds(server)
    found = load()
    used = cpu_seconds(server) - used
    # The generator's start and end take longer than the load itself, so each has its own span of time.
    others = _machine_seconds() - machine - used - found.generator_cpu * found.seconds
    others /= time.monotonic() - began
    asked = found.answered + sum(found.errors.values())
    return Figures(found, used / asked if asked else math.nan, pss(server), max(0.0, others))


def compare_answers(server: Running, model: BenchModel) -> None:
    """Ask every record, many at once so that batches form, and hold the answers against scikit-learn's.

    Raises:
        WrongAnswers: and for which record; or a version that should have answered some has answered none.
    """
    seen = set()
    for question, answer in zip(server.target.questions, asyncio.run(_ask_all(server)), strict=True):
        if answer.status_code != 200:
            raise WrongAnswers(f"{server.candidate.title}: {answer.status_code} {answer.text[:200]}")
        said = server.candidate.decode(answer.content)
        if said is None:
            continue
        seen.add(said.version)
        expected = model.expected(said.version, question.record)
        if not _is_same(said, expected):
            raise WrongAnswers(f"{server.candidate.title}, record {question.record}: {said}, expected {expected}")
    if seen and seen != server.candidate.versions:
        raise WrongAnswers(f"{server.candidate.title}: versions {sorted(seen)} answered")


def be_quiet(server: Running) -> None:
    """Wait until nothing of weight waits for the database any more: shipping is work of an earlier load.

    Raises:
        NotInTime: some still do.
    """
    if server.spool is not None:
        spool = server.spool
        wait_for(lambda: _is_shipped(spool_state(spool)), "predictions to be in the database", _QUIET_SECONDS)


def _is_shipped(state: SpoolState) -> bool:
    # Payloads wait for each other; fewer bytes than that are one short transaction.
    return state.oldest_seconds == 0 and state.waiting_bytes < _CRUMBS


def pss(server: Running) -> int | None:
    """Bytes of memory of its whole tree, shared pages counted once; None where the system does not tell."""
    sizes = []
    for each in server.family():
        with suppress(psutil.Error):
            sizes.append(each.memory_full_info())
    return sum(each.pss for each in sizes) if all(hasattr(each, "pss") for each in sizes) else None


def _is_same(said: Said, expected: tuple[float, ...]) -> bool:
    found = said.probabilities
    return len(found) == len(expected) and all(map(_is_close, found, expected))


def _is_close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=0, abs_tol=_SAME_WITHIN)


def _wait_ready(server: Running) -> None:
    # One client: making one takes longer than asking.
    with httpx.Client(headers=_JSON, timeout=5) as client:

        def answers() -> bool:
            if server.process.poll() is not None:
                raise NotStarted(f"{server.candidate.title} has ended: {server.last_words()}")
            with suppress(httpx.TransportError):
                question = server.target.questions[0]
                answer = client.post(_url(server, question.path), content=question.body)
                return answer.status_code == 200 and _says_ready(server, client)
            return False

        try:
            wait_for(answers, f"{server.candidate.title} to answer", _START_SECONDS)
        except NotInTime as problem:
            raise NotStarted(f"{problem}: {server.last_words()}") from problem


def _says_ready(server: Running, client: httpx.Client) -> bool:
    if server.candidate.readiness is None:
        return True
    path, is_ready = server.candidate.readiness
    said = client.get(_url(server, path))
    return said.status_code == 200 and is_ready(said.content)


async def _ask_all(server: Running) -> list[httpx.Response]:
    gate = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(headers=_JSON, timeout=30) as client:

        async def ask(question: Question) -> httpx.Response:
            async with gate:
                return await client.post(_url(server, question.path), content=question.body)

        return list(await asyncio.gather(*map(ask, server.target.questions)))


def _url(server: Running, path: str) -> str:
    return f"http://127.0.0.1:{server.target.port}{path}"


def cpu_seconds(server: Running) -> float:
    """Of all its processes so far, and of those that came and went."""
    total = 0.0
    for each in server.family():
        with suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _machine_seconds() -> float:
    """Of all cores of the machine, busy."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0) + getattr(times, "softirq", 0))
