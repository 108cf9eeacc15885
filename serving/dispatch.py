"""The HTTP process's side of the channel: one lane to every worker, connected again after every loss."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from serving.channel import Decoder, Frame, Hello, Kind, pack
from serving.errors import BrokenChannel
from serving.logs import logger

RECONNECT_AFTER = 0.02
"""Seconds between two attempts to reach a worker."""
_FIRST_CONNECT = 0.25
_STRAGGLERS = 0.05

log = logger(__name__)


@dataclass(frozen=True)
class WorkerView:
    """A worker as this HTTP process sees it. `round_trip` in seconds; None while a ping waits or none was sent."""

    id: int
    pid: int | None
    connected: bool
    round_trip: float | None


class Lane(asyncio.Protocol):
    """One connection to one worker. Counts as connected once the worker has said who it is."""

    def __init__(self, worker: int, on_hello: Callable[["Lane"], None], on_leaving: Callable[["Lane"], None]) -> None:
        loop = asyncio.get_running_loop()
        self.worker = worker
        self.hello: Hello | None = None
        self.leaving = False
        self.round_trip: float | None = None
        self.done: asyncio.Future[None] = loop.create_future()
        """Set when another connection has to be made: this one is lost, or its worker is about to end."""
        self.lost = False
        self._loop = loop
        self._on_hello = on_hello
        self._on_leaving = on_leaving
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._pong: asyncio.Future[bool] | None = None
        self._pings = 0
        self._pinged_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except BrokenChannel as problem:
            log.warning("lane to a worker closed", worker=self.worker, reason=problem.detail)
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by the event loop."""
        self.lost = True
        self._settle_ping(answered=False)
        self._finish()
        self._on_leaving(self)

    def ping(self) -> asyncio.Future[bool]:
        """Ask the worker's loop for an answer: True when it comes, False when the lane is lost first.

        A ping on its way is shared: however many ask, a worker that hangs owes one answer, not thousands.
        """
        if self._pong is None:
            self._pong = self._loop.create_future()
            self._pings += 1
            self._pinged_at = time.perf_counter()  # the event loop's clock counts milliseconds only
            self.round_trip = None
            self._send(pack(Kind.PING, self._pings))
        return self._pong

    def close(self) -> None:
        """Let go of the worker."""
        if self._transport is not None:
            self._transport.close()

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.PONG and frame.id == self._pings:
            self.round_trip = time.perf_counter() - self._pinged_at
            self._settle_ping(answered=True)
        elif frame.kind is Kind.HELLO:
            self.hello = Hello.unpack(frame.payload)
            self._on_hello(self)
        elif frame.kind is Kind.GOAWAY:
            self.leaving = True
            self._finish()
            self._on_leaving(self)

    def _settle_ping(self, *, answered: bool) -> None:
        if self._pong is not None and not self._pong.done():
            self._pong.set_result(answered)
        self._pong = None

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Dispatcher:
    """The lanes of one HTTP process to all workers. Make and start it inside the running event loop."""

    def __init__(self, addresses: list[str], on_connected: Callable[[int], None]) -> None:
        """`addresses` by worker id; `on_connected` is told the number of connected workers at each change."""
        self._addresses = addresses
        self._on_connected = on_connected
        self._lanes: dict[int, Lane] = {}
        self._all_connected = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect, and stay connected. Returns when all lanes stand, after a quarter of a second at the latest.

        Requests are accepted only after this: a restarted HTTP process must not refuse its first ones.
        """
        self._on_connected(0)
        self._keepers = [asyncio.create_task(self._keep(worker)) for worker in range(len(self._addresses))]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_connected.wait(), _FIRST_CONNECT)

    async def close(self) -> None:
        """Let go of every worker."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for lane in list(self._lanes.values()):
            lane.close()

    async def ping(self, deadline: float) -> bool:
        """Whether at least one worker's loop answers within `deadline` seconds.

        Does not wait for the slowest: the rest get 50 ms more, so that `workers` is complete when all are well.
        """
        limit = time.monotonic() + deadline
        waiting = {lane.ping() for lane in self._lanes.values()}
        answered = False
        while waiting and not answered and time.monotonic() < limit:
            left = limit - time.monotonic()
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            answered = any(each.result() for each in done)
        if waiting and answered:
            await asyncio.wait(waiting, timeout=_STRAGGLERS)
        return answered

    def workers(self) -> list[dict[str, Any]]:
        """Every worker as seen from here, by id: `{"id", "pid", "connected", "round_trip"}`."""
        return [asdict(self._view(worker)) for worker in range(len(self._addresses))]

    def _view(self, worker: int) -> WorkerView:
        lane = self._lanes.get(worker)
        if lane is None or lane.hello is None:
            return WorkerView(worker, None, connected=False, round_trip=None)
        return WorkerView(worker, lane.hello.pid, connected=True, round_trip=lane.round_trip)

    async def _keep(self, worker: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lane = Lane(worker, self._hello, self._withdraw)
            try:
                await loop.create_unix_connection(lambda lane=lane: lane, self._addresses[worker])  # type: ignore[misc]
                await lane.done
            except OSError:
                pass  # not there yet
            except asyncio.CancelledError:
                lane.close()
                raise
            await asyncio.sleep(RECONNECT_AFTER)

    def _hello(self, lane: Lane) -> None:
        """A lane stands: it takes the place of its predecessor, which may still be open."""
        before = self._lanes.get(lane.worker)
        self._lanes[lane.worker] = lane
        if before is not None and before is not lane:
            before.close()
        self._let_go()
        self._tell()

    def _withdraw(self, lane: Lane) -> None:
        """A lane is lost, or its worker is about to end."""
        if lane.lost and self._lanes.get(lane.worker) is lane:
            del self._lanes[lane.worker]
        self._let_go()
        self._tell()

    def _let_go(self) -> None:
        """Close lanes to ending workers as soon as somebody else is there; until then they are better than nobody."""
        if all(lane.leaving for lane in self._lanes.values()):
            return
        for lane in [each for each in self._lanes.values() if each.leaving]:
            del self._lanes[lane.worker]
            lane.close()

    def _tell(self) -> None:
        connected = len(self._lanes)
        self._on_connected(connected)
        if connected == len(self._addresses):
            self._all_connected.set()
