"""One connection of an HTTP process to one worker, and the calls that are under way on it."""

import asyncio
import time
from typing import Any, Protocol, cast

import orjson

from serving.channel import Decoder, Frame, Hello, Kind, Outcome, Question, pack, version_key
from serving.contracts import Held, ModelKind
from serving.errors import BrokenChannel
from serving.logs import logger

log = logger(__name__)


class Gate(Protocol):
    """What counts the calls of a model."""

    def leave(self) -> None:
        """A worker owes one answer less."""
        ...


class Settable(Protocol):
    """What of a future is needed here."""

    def done(self) -> bool:
        """Whether it is set."""
        ...

    def set_result(self, result: Any, /) -> None:
        """The answer. Never raises."""
        ...

    def set_exception(self, error: Any, /) -> None:
        """There is none. Never raises."""
        ...


class Asker(Protocol):
    """Who waits for the answer to a question, and is told of it before all others' answers of this moment are given."""

    def read(self, outcome: Outcome, body: bytes) -> Any:
        """What the answer comes to. May raise; then that is what it comes to."""
        ...

    def failed(self, error: Exception) -> Exception:
        """There is no answer; the error to be raised for it."""
        ...


class Call:
    """One question to the workers until it is settled. Its answer may come to nobody: the deadline comes first."""

    __slots__ = ("answer", "asker", "begun", "body", "gate", "question", "settled", "version")

    def __init__(
        self, question: Question, body: bytes, version: bytes, gate: Gate, asker: Asker, answer: Settable
    ) -> None:
        self.question = question
        self.body = body
        self.version = version  # key of the version, without what distinguishes batches of it
        self.gate = gate
        self.asker = asker
        self.answer = answer
        self.begun = False
        """Whether a worker has said that it computes it, alone."""
        self.settled = False

    def settle(self) -> None:
        """No worker works on it any more."""
        if not self.settled:
            self.settled = True
            self.gate.leave()

    def fail(self, error: Exception) -> None:
        """End it with this error, unless it has ended."""
        if not self.answer.done():
            self.answer.set_exception(self.asker.failed(error))


class LaneOwner(Protocol):
    """Who is told what happens on a lane."""

    def lane_changed(self, lane: "Lane") -> None:
        """Its worker has said who it is or what it holds, is about to end, or is lost."""
        ...

    def replied(self, lane: "Lane", call: Call, frame: Frame) -> None:
        """An ANSWER or FAILURE to a call, which is not under way here any more."""
        ...

    def heard_out(self) -> None:
        """All is told that came in one piece."""
        ...


class Lane(asyncio.Protocol):
    """One connection to one worker. Counts as connected once the worker has said who it is."""

    def __init__(self, worker: int, owner: LaneOwner) -> None:
        loop = asyncio.get_running_loop()
        self.worker = worker
        self.hello: Hello | None = None
        self.holds: dict[bytes, Held] = {}
        self.calls: dict[int, Call] = {}
        self.leaving = False
        """Its worker is about to end."""
        self.lost = False
        self.round_trip: float | None = None
        self.heard = 0.0
        """When the worker last said anything, on the monotonic clock."""
        self.moved = 0.0
        """When it last answered a call, or was given one while it had none, on the monotonic clock."""
        self.compute = 0.0
        """Seconds that its latest batch took."""
        self.done: asyncio.Future[None] = loop.create_future()
        """Set when another connection has to be made: this one is lost, or its worker is about to end."""
        self._loop = loop
        self._owner = owner
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._retired = False
        self._out: list[bytes] = []
        self._last = 0
        self._pong: asyncio.Future[bool] | None = None
        self._pings = 0
        self._pinged_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self.heard = time.monotonic()
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except (BrokenChannel, orjson.JSONDecodeError, TypeError, KeyError, ValueError) as problem:
            log.warning("lane to a worker closed", worker=self.worker, reason=str(problem))
            self.close()
        self._owner.heard_out()
        if self._retired and not self.calls:
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by the event loop."""
        self.lost = True
        self.holds = {}
        self._settle_ping(answered=False)
        self._finish()
        self._owner.lane_changed(self)

    def send(self, call: Call) -> None:
        """Put the question to the worker, together with all others of this turn of the event loop."""
        self._last += 1
        if not self.calls:
            self.moved = time.monotonic()
        self.calls[self._last] = call
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(call.question.pack(self._last, call.body))

    def ping(self) -> asyncio.Future[bool]:
        """Ask the worker's loop for an answer: True when it comes, False when the lane is lost first.

        A ping on its way is shared: however many ask, a worker that hangs owes one answer, not thousands.
        """
        if self._pong is None:
            self._pong = self._loop.create_future()
            self._pings += 1
            self._pinged_at = time.perf_counter()  # the event loop's clock counts milliseconds only
            self.round_trip = None
            self._write(pack(Kind.PING, self._pings))
        return self._pong

    def retire(self) -> None:
        """Take no more calls, and let go of the worker when it has answered those it has."""
        self._retired = self.leaving = True
        if not self.calls:
            self.close()

    def close(self) -> None:
        """Let go of the worker."""
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._write(b"".join(out))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.ANSWER or frame.kind is Kind.FAILURE:
            call = self.calls.pop(frame.id, None)
            self.moved = self.heard
            if call is not None:
                self._owner.replied(self, call, frame)
        elif frame.kind is Kind.BEGUN:
            if frame.id in self.calls:
                self.calls[frame.id].begun = True
        elif frame.kind is Kind.PONG:
            if frame.id == self._pings:
                self.round_trip = time.perf_counter() - self._pinged_at
                self._settle_ping(answered=True)
        else:
            self._take_news(frame)

    def _take_news(self, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            self.hello = Hello.unpack(frame.payload)
        elif frame.kind is Kind.HOLDS:
            self.holds = {version_key(each.model_id, each.version): each for each in read_holds(frame.payload)}
        elif frame.kind is Kind.GOAWAY:
            self.leaving = True
            self._finish()
        else:
            return
        self._owner.lane_changed(self)

    def _settle_ping(self, *, answered: bool) -> None:
        if self._pong is not None and not self._pong.done():
            self._pong.set_result(answered)
        self._pong = None

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def read_holds(payload: bytes) -> list[Held]:
    """What a HOLDS frame carries. Raises JSONDecodeError, TypeError, KeyError or ValueError when it is none."""
    listed: list[dict[str, Any]] = orjson.loads(payload)
    return [Held(**{**each, "kind": ModelKind(each["kind"])}) for each in listed]
