"""A load generator on raw sockets: closed loop and open loop (Poisson), with an account of its own lateness.

Closed loop: each connection asks again as soon as it is answered, so a slow server is asked less. Open loop: requests
arrive when they arrive; their time is counted from the moment they were due, also while no connection was free, so
that a server that stops for a second is charged with all who came in that second.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import cast

import uvloop

from benchmarks.serving.outcome import Load, Target

_TICK_SECONDS = 0.01
_GIVE_UP_SECONDS = 10.0
_BODY_AT = b"\r\n\r\n"
_LENGTH = b"content-length:"


@dataclass(frozen=True)
class OpenLoop:
    """How many arrive in a second, on average."""

    rate: float
    seed: int = 0


def run_closed(target: Target, connections: int, seconds: float) -> Load:
    """Ask on so many connections, each at once again, for so long."""
    return _run(_closed(target, connections, seconds))


def run_open(target: Target, connections: int, seconds: float, arrivals: OpenLoop) -> Load:
    """Ask at a rate, on at most so many connections, for so long; then wait for what is under way."""
    return _run(_open(target, connections, seconds, arrivals))


def _run(work: Coroutine[None, None, Load]) -> Load:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        load: Load = runner.run(work)
        return load


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way at a time."""

    def __init__(
        self, on_answer: Callable[["_Connection", int], None], on_lost: Callable[["_Connection"], None]
    ) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self.began = 0.0
        self.busy = False
        self.closed = False  # by us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, began: float) -> None:
        """Send; `began` is when the time of this request began."""
        self.began, self.busy = began, True
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        end = _end_of_answer(received)
        if end is None or len(received) < end:
            self._received = received
            return
        self._received = b""
        self.busy = False
        self._on_answer(self, int(received[9:12]))

    def connection_lost(self, _exc: Exception | None) -> None:
        self._on_lost(self)

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()


def _end_of_answer(received: bytes) -> int | None:
    """Bytes of the whole answer at the beginning of this; None as long as its header is not complete."""
    body = received.find(_BODY_AT)
    if body < 0:
        return None
    head = received[:body].lower()
    at = head.find(_LENGTH)
    if at < 0:
        raise ValueError("an answer without content-length")
    return body + len(_BODY_AT) + int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])


class _Book:
    """What happened: times, errors, and how late we were ourselves."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.errors: dict[str, int] = {}
        self.late: list[float] = []

    def answered(self, connection: _Connection, status: int) -> None:
        if status == 200:
            self.times.append(time.perf_counter() - connection.began)
        else:
            self.failed(str(status))

    def failed(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1

    async def watch_the_clock(self) -> None:
        """How late our own loop comes round: what it adds to every time it takes."""
        while True:
            due = time.perf_counter() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self.late.append(time.perf_counter() - due)

    def close(self, seconds: float, cpu: float) -> Load:
        times = sorted(self.times)
        return Load(
            seconds=seconds,
            answered=len(times),
            errors=dict(self.errors),
            p50=_percentile(times, 50),
            p95=_percentile(times, 95),
            p99=_percentile(times, 99),
            generator_cpu=cpu / seconds,
            generator_late=_percentile(sorted(self.late), 99),
        )


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("nan")


async def _connect(
    target: Target, book: _Book, count: int, on_free: Callable[[_Connection], None]
) -> list[_Connection]:
    def on_answer(connection: _Connection, status: int) -> None:
        book.answered(connection, status)
        on_free(connection)

    def on_lost(connection: _Connection) -> None:
        if not connection.closed:
            book.failed("connection lost")

    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Connection(on_answer, on_lost), *target.address) for _ in range(count)
    ]
    return [connection for _, connection in made]


async def _closed(target: Target, count: int, seconds: float) -> Load:
    book = _Book()
    requests = cycle(target.requests)
    ends = 0.0

    def ask(connection: _Connection) -> None:
        now = time.perf_counter()
        if now < ends:
            connection.ask(next(requests), now)

    connections = await _connect(target, book, count, ask)
    clock = asyncio.create_task(book.watch_the_clock())
    began, cpu = time.perf_counter(), time.process_time()
    ends = began + seconds
    for each in connections:
        ask(each)
    await asyncio.sleep(seconds)
    load = book.close(time.perf_counter() - began, time.process_time() - cpu)
    clock.cancel()
    await _settle(connections)
    return load


async def _open(target: Target, count: int, seconds: float, arrivals: OpenLoop) -> Load:
    book = _Book()
    requests = cycle(target.requests)
    waiting: deque[float] = deque()
    free: list[_Connection] = []

    def on_free(connection: _Connection) -> None:
        if waiting:
            connection.ask(next(requests), waiting.popleft())
        else:
            free.append(connection)

    connections = await _connect(target, book, count, on_free)
    free.extend(connections)
    chance = random.Random(arrivals.seed)
    began, cpu = time.perf_counter(), time.process_time()
    due = began
    while (due := due + chance.expovariate(arrivals.rate)) < began + seconds:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        elif len(book.late) % 64 == 0:
            await asyncio.sleep(0)  # behind: let answers in between
        book.late.append(max(0.0, time.perf_counter() - due))
        if free:
            free.pop().ask(next(requests), due)
        else:
            waiting.append(due)
    await _settle(connections)
    for _ in waiting:
        book.failed("never sent")
    return book.close(time.perf_counter() - began, time.process_time() - cpu)


async def _settle(connections: Sequence[_Connection]) -> None:
    """Wait for what is under way, then hang up."""
    until = time.perf_counter() + _GIVE_UP_SECONDS
    while any(each.busy for each in connections) and time.perf_counter() < until:  # noqa: ASYNC110  # nothing is timed any more
        await asyncio.sleep(_TICK_SECONDS)
    for each in connections:
        each.close()
    await asyncio.sleep(0)
