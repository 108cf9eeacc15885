"""The agent's connections to the workers: what each holds, and orders to load, unload and configure."""

import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import orjson
import psutil

from serving.channel import Decoder, Frame, Hello, Kind, pack
from serving.contracts import Held, ModelKind
from serving.desired import Key
from serving.errors import BrokenChannel
from serving.logs import logger

RECONNECT_AFTER = 0.02
"""Seconds between two attempts to reach a worker."""

log = logger(__name__)


class WorkerLine(asyncio.Protocol):
    """One connection to one worker. Counts from the moment that the worker has said who it is and what it holds."""

    def __init__(self, worker: int, on_change: Callable[["WorkerLine"], None]) -> None:
        self.worker = worker
        self.hello: Hello | None = None
        self._process: psutil.Process | None = None
        self.held: dict[Key, Held] | None = None
        self.at: Key | None = None
        """The version that the worker is loading or unloading for us."""
        self.configured: dict[str, tuple[int, float]] = {}
        """What it was told of each model: batch_size and timeout."""
        self.leaving = False
        self.lost = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when another connection has to be made: this one is lost, or its worker is about to end."""
        self._on_change = on_change
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count(1)
        self._orders: dict[int, asyncio.Future[dict[str, Any] | None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except (BrokenChannel, ValueError, TypeError, KeyError) as problem:
            log.warning("line to a worker closed", worker=self.worker, reason=str(problem)[:300])
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by the event loop."""
        self.lost = True
        for order in self._orders.values():
            if not order.done():
                order.set_result(None)
        self._finish()
        self._on_change(self)

    def order(self, control: Mapping[str, Any]) -> "asyncio.Future[dict[str, Any] | None]":
        """Tell the worker to do something. The future is its REPORT; None when the connection is lost first."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        if self.lost or self._transport is None:
            answer.set_result(None)
            return answer
        self._orders[number] = answer
        answer.add_done_callback(lambda _: self._orders.pop(number, None))
        self._transport.write(pack(Kind.CONTROL, number, orjson.dumps(control)))
        return answer

    def rss_mb(self) -> float | None:
        """Resident memory of the worker's process in MB; None when it is gone."""
        if self.hello is None:
            return None
        try:
            # One object for the line's life: making one reads more of /proc than it is asked for.
            if self._process is None:
                self._process = psutil.Process(self.hello.pid)
            return float(self._process.memory_info().rss / 2**20)
        except psutil.Error:
            return None

    def kill(self) -> None:
        """End the worker's process, which does not do so by itself. Whoever supervises it starts another one."""
        if self.hello is not None and not self.lost:  # while it is connected its number is nobody else's
            with suppress(ProcessLookupError):
                os.kill(self.hello.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the worker."""
        if self._transport is not None:
            self._transport.close()

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.REPORT:
            answer = self._orders.get(frame.id)
            if answer is not None and not answer.done():
                answer.set_result(dict(orjson.loads(frame.payload)))
            return
        if frame.kind is Kind.HELLO:
            self.hello = Hello.unpack(frame.payload)
        elif frame.kind is Kind.HOLDS:
            self.held = read_held(frame.payload)
        elif frame.kind is Kind.GOAWAY:
            self.leaving = True
            self._finish()
        self._on_change(self)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Workers:
    """The lines to all workers, each made again after every loss. Make and start it inside the running event loop."""

    def __init__(self, addresses: list[str], on_change: Callable[[int], None]) -> None:
        """`addresses` by worker; `on_change` is told of each worker that came, went, or says what it holds."""
        self._addresses = addresses
        self._on_change = on_change
        self._lines: dict[int, WorkerLine] = {}
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def lines(self) -> Mapping[int, WorkerLine]:
        """Workers that are connected and have said what they hold."""
        return self._lines

    def start(self) -> None:
        """Connect, and stay connected."""
        self._keepers = [asyncio.create_task(self._keep(worker)) for worker in range(len(self._addresses))]

    async def close(self) -> None:
        """Let go of every worker."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for line in list(self._lines.values()):
            line.close()

    async def _keep(self, worker: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            line = WorkerLine(worker, self._changed)
            try:
                await loop.create_unix_connection(lambda line=line: line, self._addresses[worker])  # type: ignore[misc]
                await line.done
            except OSError:
                pass  # not there yet
            except asyncio.CancelledError:
                line.close()
                raise
            await asyncio.sleep(RECONNECT_AFTER)

    def _changed(self, line: WorkerLine) -> None:
        current = self._lines.get(line.worker)
        if line.lost:
            if current is not line:
                return
            del self._lines[line.worker]
        elif line.leaving:
            # It ends as soon as nobody is connected any more. Whoever succeeds it has its address already.
            line.close()
            return
        elif line.hello is None or line.held is None:
            return
        elif current is not line:
            self._lines[line.worker] = line
            if current is not None:
                current.close()
        self._on_change(line.worker)


def read_held(payload: bytes) -> dict[Key, Held]:
    """What a HOLDS frame carries. Raises ValueError, TypeError or KeyError when it is none."""
    return {(each.model_id, each.version): each for each in map(held_from, orjson.loads(payload))}


def held_from(facts: Mapping[str, Any]) -> Held:
    """A Held as it travels. Raises ValueError, TypeError or KeyError when it is none."""
    return Held(**{**facts, "kind": ModelKind(facts["kind"])})
