"""The HTTP process's side of the channel: which worker answers a question, by when, and what if that worker dies."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import orjson

from serving.channel import Frame, Kind, Outcome, Question, split_key
from serving.contracts import Held
from serving.errors import BrokenChannel, DeadlineExceeded, ModelError, NotReady, SwitchyardError, WorkerLost
from serving.lane import Asker, Call, Gate, Lane, Settable
from serving.retries import REFUSED_FOR, Retries

RECONNECT_AFTER = 0.02
"""Seconds between two attempts to reach a worker."""
STUCK_AFTER = 0.25
"""Seconds without an answer after which a worker that has calls gets no more while another one is free."""
PACKED_UNDER = 0.001
"""Seconds: a worker whose batches take less is given more while it is awake, before another one is woken for it."""
_PACKED_CALLS = 32
_CLOCK_STEP = 0.001  # the event loop counts milliseconds, so a timer may be that much too early
_FIRST_CONNECT = 0.25
_STRAGGLERS = 0.05
_BUSY_WINDOW = 5.0


@dataclass(frozen=True)
class WorkerView:
    """A worker as this HTTP process sees it. `round_trip` in seconds; None while a ping waits or none was sent."""

    id: int
    pid: int | None
    connected: bool
    spare: bool
    round_trip: float | None


class _Able(NamedTuple):
    """Who can answer for a version."""

    held: Held
    lanes: list[Lane]
    fallback: Lane | None  # when there is no other, or all are stuck


class Dispatcher:
    """The lanes of one HTTP process to all workers. Make and start it inside the running event loop."""

    def __init__(
        self,
        addresses: list[str],
        on_connected: Callable[[int], None],
        on_event: Callable[[str, int], None],
        before_answers: Callable[[], None] = lambda: None,
    ) -> None:
        """`addresses` by worker id, the spare's last.

        `on_connected` is told how many workers are connected, at each change; `on_event` of calls that were `retried`
        (their worker ended), `late` (answered after the deadline), `lost` (two workers ended under them) or `refused`.
        `before_answers` is called when all answers that came in one piece are read, before anybody gets his.
        """
        self._count = on_event
        self._before_answers = before_answers
        self._addresses = addresses
        self._spare = len(addresses) - 1 if len(addresses) > 1 else -1
        self._on_connected = on_connected
        self._lanes: dict[int, Lane] = {}
        self._every_lane: set[Lane] = set()  # those too that only have calls left to answer
        self._all_connected = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        self._retries = Retries(self._lane_for_retry, on_event)
        self._able: dict[bytes, _Able] = {}
        self._read: list[tuple[Settable, Any]] = []
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = math.inf

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
        if self._watch is not None:
            self._watch.cancel()

    def held(self, version: bytes) -> Held | None:
        """What the workers say of a version (see `version_key`); None while none of them can answer for it."""
        able = self._able_for(version)
        return able.held if able is not None else None

    def ask(
        self,
        question: Question,
        body: bytes,
        version: bytes,
        gate: Gate,
        asker: Asker,
        answer: Settable | None = None,
    ) -> Any:
        """Put a question to a worker that holds the version. The gate is left when no worker works on it any more.

        `answer`, or else a future, is set to what `asker` reads in the answer, unless the deadline came first: then it
        is not read. It fails with DeadlineExceeded, ModelError, WorkerLost or NotReady, as `asker` would have it.

        Raises:
            NotReady: no worker holds it; the gate was left.
            WorkerLost: workers died of this very question a moment ago; the gate was left.
        """
        lane = self._pick(version)
        if lane is None or self._retries.refuses(question.key, body):
            gate.leave()
            if lane is None:
                raise NotReady("no worker holds this version at the moment")
            self._count("refused", 1)
            raise WorkerLost(
                f"workers ended while they computed this very input, so it is refused for {REFUSED_FOR:g} s"
            )
        call = Call(question, body, version, gate, asker, answer or self._loop.create_future())
        if question.deadline < self._watch_at:
            self._watch_for(question.deadline)
        lane.send(call)
        return call.answer

    async def ping(self, deadline: float) -> bool:
        """Whether at least one worker's loop answers within `deadline` seconds, or is busy and has lately.

        Does not wait for the slowest: the rest get 50 ms more, so that `workers` is complete when all are well.
        """
        limit = time.monotonic() + deadline
        answered, asked = False, set[Lane]()
        # Who has just handed over to a successor does not answer any more: then the successor is asked.
        while not answered and not asked.issuperset(self._lanes.values()) and time.monotonic() < limit:
            asked.update(self._lanes.values())
            answered = await _any_pong({lane.ping() for lane in self._lanes.values()}, limit)
        return answered or any(self._is_busy(lane) for lane in self._lanes.values())

    def workers(self) -> list[dict[str, Any]]:
        """Every worker as seen from here, by id: `{"id", "pid", "connected", "spare", "round_trip"}`."""
        return [asdict(self._view(worker)) for worker in range(len(self._addresses))]

    def lane_changed(self, lane: Lane) -> None:
        """See LaneOwner."""
        if lane.lost:
            self._take_away(lane)
        elif lane.hello is not None and self._lanes.get(lane.worker) is not lane and not lane.leaving:
            # It takes the place of its predecessor, which may still have calls to answer.
            before = self._lanes.get(lane.worker)
            self._lanes[lane.worker] = lane
            self._every_lane.add(lane)
            if before is not None:
                before.retire()
        self._let_go()
        self._able.clear()
        self._tell()
        self._retries.go_on()

    def replied(self, lane: Lane, call: Call, frame: Frame) -> None:
        """See LaneOwner."""
        call.settle()
        self._retries.replied(call)
        if call.answer.done():
            self._count("late", 1)
        elif frame.kind is Kind.ANSWER:
            try:
                outcome, body = Outcome.unpack(frame.payload)
            except BrokenChannel as problem:
                call.fail(problem)
                raise
            lane.compute = outcome.compute
            try:
                self._read.append((call.answer, call.asker.read(outcome, body)))
            except Exception as problem:  # noqa: BLE001  # its asker's, like everything that comes of its answer
                call.fail(problem)
        else:
            try:
                call.fail(_failure(call, frame.payload))
            except (ValueError, KeyError, TypeError) as problem:
                call.fail(BrokenChannel(f"a failure that cannot be read ({type(problem).__name__})"))
                raise

    def heard_out(self) -> None:
        """See LaneOwner."""
        if not self._read:
            return
        read, self._read = self._read, []
        self._before_answers()
        for answer, value in read:
            if not answer.done():
                answer.set_result(value)

    def _able_for(self, version: bytes) -> "_Able | None":
        """Who can answer for the version; remembered until some lane changes."""
        able = self._able.get(version)
        if able is None:
            lanes = {worker: lane for worker, lane in self._lanes.items() if version in lane.holds}
            if not lanes:
                return None
            # One that is about to end is better than nobody, and so is the spare.
            last = {w: lane for w, lane in lanes.items() if w == self._spare or (lane.leaving and len(self._lanes) > 1)}
            first = [lane for worker, lane in lanes.items() if worker not in last]
            fallback = last.get(self._spare) or next(iter(last.values()), None)
            held = next(iter(lanes.values())).holds[version]
            able = self._able[version] = _Able(held, first, fallback)
        return able

    def _pick(self, version: bytes) -> Lane | None:
        """The worker with the fewest calls that holds the version; the spare when there is no other, or all are stuck.

        One model that takes its time must not hold up the others while a worker has nothing to do. But where batches
        are computed in less time than it takes to wake another worker, one that is awake gets more first.
        """
        able = self._able_for(version)
        if able is None:
            return None
        stuck_before = time.monotonic() - STUCK_AFTER
        best: Lane | None = None
        for lane in able.lanes:
            if lane.compute < PACKED_UNDER and 0 < len(lane.calls) < _PACKED_CALLS and lane.moved >= stuck_before:
                return lane
            if best is None or _burden(lane, stuck_before) < _burden(best, stuck_before):
                best = lane
        fallback = able.fallback
        if best is None or fallback is None:
            return best or fallback
        return fallback if _burden(fallback, stuck_before) < (1, 0) <= _burden(best, stuck_before) else best

    def _watch_for(self, deadline: float) -> None:
        """Look at the deadlines when this one has passed, which is the next."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch_at = deadline
        self._watch = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        """Some deadline has passed. The worker still owes the answer, so such a call stays under way on its lane.

        One timer for all of them, set to the earliest of those that were under way when it was set: a timer for each
        call would cost as much as the call's validation.
        """
        self._watch, self._watch_at = None, math.inf
        passed, following = time.monotonic() + _CLOCK_STEP, math.inf
        for call in [each for calls in self._all_calls() for each in calls]:
            if call.answer.done():
                continue
            if call.question.deadline > passed:
                following = min(following, call.question.deadline)
                continue
            model_id, _, _ = split_key(call.question.key)
            call.fail(DeadlineExceeded(model_id, 0.0))
        if following < math.inf:
            self._watch_for(following)

    def _all_calls(self) -> Iterator[Iterable[Call]]:
        yield self._retries.waiting
        for lane in self._every_lane:
            yield lane.calls.values()

    def _take_away(self, lane: Lane) -> None:
        """A lane is lost: what was under way on it is asked once more, singly, on the spare."""
        self._every_lane.discard(lane)
        if self._lanes.get(lane.worker) is lane:
            del self._lanes[lane.worker]
        calls, lane.calls = list(lane.calls.values()), {}
        self._retries.take(lane.worker, calls)

    def _lane_for_retry(self, version: bytes) -> Lane | None:
        spare = self._lanes.get(self._spare)
        return spare if spare is not None and version in spare.holds and not spare.leaving else self._pick(version)

    def _is_busy(self, lane: Lane) -> bool:
        return bool(lane.calls) and time.monotonic() - lane.heard < _BUSY_WINDOW

    def _view(self, worker: int) -> WorkerView:
        lane = self._lanes.get(worker)
        spare = worker == self._spare
        if lane is None or lane.hello is None:
            return WorkerView(worker, None, connected=False, spare=spare, round_trip=None)
        return WorkerView(worker, lane.hello.pid, connected=True, spare=spare, round_trip=lane.round_trip)

    async def _keep(self, worker: int) -> None:
        while True:
            lane = Lane(worker, self)
            try:
                await self._loop.create_unix_connection(lambda lane=lane: lane, self._addresses[worker])  # type: ignore[misc]
                await lane.done
            except OSError:
                pass  # not there yet
            except asyncio.CancelledError:
                lane.close()
                raise
            await asyncio.sleep(RECONNECT_AFTER)

    def _let_go(self) -> None:
        """Let lanes to ending workers go as soon as somebody else is there; until then they are better than nobody."""
        if all(lane.leaving for lane in self._lanes.values()):
            return
        for lane in [each for each in self._lanes.values() if each.leaving]:
            del self._lanes[lane.worker]
            lane.retire()

    def _tell(self) -> None:
        connected = len(self._lanes)
        self._on_connected(connected)
        if connected == len(self._addresses):
            self._all_connected.set()


async def _any_pong(waiting: "set[asyncio.Future[bool]]", limit: float) -> bool:
    """Whether one of them is answered before `limit`; false as soon as no lane is left to answer."""
    answered = False
    while waiting and not answered and time.monotonic() < limit:
        done, waiting = await asyncio.wait(
            waiting, timeout=limit - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
        )
        answered = any(each.result() for each in done)
    if waiting and answered:
        await asyncio.wait(waiting, timeout=_STRAGGLERS)
    return answered


def _burden(lane: Lane, stuck_before: float) -> tuple[int, int]:
    """Whether it is stuck (1), then how many calls it has: less is better."""
    calls = len(lane.calls)
    return int(calls > 0 and lane.moved < stuck_before), calls


def _failure(call: Call, payload: bytes) -> SwitchyardError:
    """The error that a FAILURE frame tells."""
    said = orjson.loads(payload)
    model_id, version, _ = split_key(call.question.key)
    if said["error"] == "ModelError":
        return ModelError(model_id, version, said["row"], said["exception"], said["problem"])
    if said["error"] == "DeadlineExceeded":
        return DeadlineExceeded(model_id, 0.0)
    return NotReady(f"version {version} was unloaded a moment ago")
