"""Predictions for many rows: batches side by side, busy servers asked again, a bad row left out and named."""

import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from control_plane.client import Json
from control_plane.commands.rows import Row
from control_plane.errors import ApiNotReady, ApiRefused

Item = TypeVar("Item")
Answer = TypeVar("Answer")

PATIENCE_SECONDS = 60.0
"""How long a server that is busy or not ready is asked again for one batch."""

_ROW_OF = re.compile(r"^input_data\.[^\[]+\[(\d+)\]|^inputs.*\.data\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What became of one row."""

    line: int
    prediction: Json | None = None  # {"label", "probabilities"} or {"value"}
    confidence: float | None = None
    version: str | None = None
    request_id: str | None = None
    row: int | None = None  # within that request: feedback names both
    problem: str | None = None


@dataclass(frozen=True)
class Answered:
    """What became of one batch."""

    rows: list[Predicted]
    seconds: list[float]  # of each request that was answered with predictions
    retried: int


@dataclass
class Summary:
    """What many batches came to."""

    rows: int = 0
    failed: int = 0
    retried: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    problems: list[Predicted] = field(default_factory=list)

    def add(self, answered: Answered) -> None:
        """Count one more batch."""
        bad = [each for each in answered.rows if each.problem]
        self.rows += len(answered.rows)
        self.failed += len(bad)
        self.retried += answered.retried
        self.latencies += answered.seconds
        self.problems += bad[: max(0, 1000 - len(self.problems))]

    def as_json(self) -> Json:
        """Times in seconds; the latency is that of whole requests."""
        return {
            "rows": self.rows,
            "failed": self.failed,
            "seconds": round(self.seconds, 4),
            "rows_per_second": round((self.rows - self.failed) / self.seconds, 1) if self.seconds else None,
            "requests": len(self.latencies),
            "retried": self.retried,
            "latency": {"p50": quantile(self.latencies, 0.5), "p95": quantile(self.latencies, 0.95)},
        }


def quantile(values: list[float], share: float) -> float | None:
    """The value that this share of all does not exceed (nearest rank); None of nothing."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 6) if ordered else None


class Sender:
    """Sends a batch of rows until each of them is answered or known to be bad."""

    def __init__(self, ask: Callable[[Json], Json], common: Json, patience: float = PATIENCE_SECONDS) -> None:
        """`ask` puts one question; `common` is what every question carries besides its rows."""
        self._ask, self._common, self._patience = ask, common, patience

    def send(self, batch: list[Row]) -> Answered:
        """Rows that the server names as bad are left out and the others asked again.

        Raises:
            ApiNotReady: it stayed busy or not ready for longer than the patience.
            ApiRefused: the question itself is wrong, whatever the rows, as with a model that does not exist.
            ApiUnreachable: the connection could not be had.
        """
        done = {row.line: Predicted(row.line, problem=row.problem) for row in batch if row.problem}
        left = [row for row in batch if not row.problem]
        seconds: list[float] = []
        retried = 0
        while left:
            question = {"input_data": _columns(left), "request_id": str(uuid.uuid4()), **self._common}
            try:
                answer, took, again = self._insist(question)
            except ApiRefused as refused:
                bad = _bad_rows(refused, len(left))
                done |= {left[at].line: Predicted(left[at].line, problem=why) for at, why in bad.items()}
                left = [row for at, row in enumerate(left) if at not in bad]
                continue
            seconds.append(took)
            retried += again
            done |= {each.line: each for each in _predicted(left, answer)}
            break
        return Answered([done[row.line] for row in batch], seconds, retried)

    def _insist(self, question: Json) -> tuple[Json, float, int]:
        """The answer, the seconds of the request that was answered, and how many were refused before it."""
        until = time.monotonic() + self._patience
        retried = 0
        while True:
            begun = time.monotonic()
            try:
                # The same request_id each time: a server that had answered already gives that answer again.
                return self._ask(question), time.monotonic() - begun, retried
            except ApiNotReady as refused:
                if time.monotonic() + refused.retry_after > until:
                    raise
                retried += 1
                time.sleep(max(refused.retry_after, 0.05))


def map_in_order(work: Callable[[Item], Answer], items: Iterable[Item], concurrency: int) -> Iterator[Answer]:
    """`work` of each item, `concurrency` at a time, the answers in the items' order; few items are taken ahead.

    Raises what `work` raises. Its threads are daemons: nobody who gives up has to wait for a request under way.
    """
    tasks: SimpleQueue[tuple[Future[Answer], Item] | None] = SimpleQueue()
    for _ in range(concurrency):
        threading.Thread(target=_work_off, args=(work, tasks), daemon=True).start()
    pending: deque[Future[Answer]] = deque()
    try:
        for item in items:
            future: Future[Answer] = Future()
            tasks.put((future, item))
            pending.append(future)
            if len(pending) >= 2 * concurrency:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        for _ in range(concurrency):
            tasks.put(None)


def _work_off(work: Callable[[Item], Answer], tasks: "SimpleQueue[tuple[Future[Answer], Item] | None]") -> None:
    while (task := tasks.get()) is not None:
        future, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work(item))
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is taken
            future.set_exception(error)


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    """The rows as columns of equal length; what a row lacks is null."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return {name: [row.values.get(name) for row in rows] for name in names}


def _predicted(rows: list[Row], answer: Json) -> Iterator[Predicted]:
    confidence = answer.get("confidence_scores") or [None] * len(rows)
    for at, row in enumerate(rows):
        yield Predicted(
            line=row.line,
            prediction=answer["predictions"][at],
            confidence=confidence[at],
            version=answer["model_version"],
            request_id=answer["request_id"],
            row=at,
        )


def _bad_rows(refused: ApiRefused, size: int) -> dict[int, str]:
    """Which rows of the batch the server calls bad, and why.

    Raises:
        ApiRefused: it is not about rows.
    """
    if isinstance(refused, ApiNotReady):
        raise refused
    if refused.status in (500, 504):
        row = refused.answer.get("row")
        return {row: refused.said} if row is not None else dict.fromkeys(range(size), refused.said)
    found: dict[int, str] = {}
    for each in refused.answer.get("fields", []):
        named = _ROW_OF.match(each["path"])
        if named is None:
            raise refused
        found.setdefault(int(named[1] or named[2]), _words(each))
    if not found:
        raise refused
    return found


def _words(problem: dict[str, str]) -> str:
    name = problem["path"].removeprefix("input_data.").partition("[")[0]
    return f"{name}: {problem['problem']}, expected {problem['expected']}"
