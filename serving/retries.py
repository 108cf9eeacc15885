"""Calls whose worker ended: asked once more, one at a time, until one is found out that ends workers."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b

from msgspec.structs import replace

from serving.errors import WorkerLost
from serving.lane import Call, Lane
from serving.logs import logger

RETRY_PATIENCE = 3.0
"""Seconds that a call whose worker died waits for another one; a worker is back in a tenth, plus its models' loading."""
REFUSED_FOR = 60.0
"""Seconds for which a question is refused that two workers died of."""

log = logger(__name__)


class Retries:
    """Those of one HTTP process. Make it inside the running event loop."""

    def __init__(self, lane_for: Callable[[bytes], Lane | None], on_event: Callable[[str, int], None]) -> None:
        """`lane_for` names a worker that holds a version; `on_event` is told of calls `retried` and `lost`."""
        self.waiting: deque[Call] = deque()
        """For their turn."""
        self._lane_for = lane_for
        self._count = on_event
        self._loop = asyncio.get_running_loop()
        self._retrying: Call | None = None
        self._refused: dict[bytes, float] = {}

    def refuses(self, key: bytes, body: bytes) -> bool:
        """Whether workers ended under this very question a moment ago."""
        if not self._refused:
            return False
        now = time.monotonic()
        self._refused = {digest: until for digest, until in self._refused.items() if until > now}
        return _digest(key, body) in self._refused

    def take(self, worker: int, calls: list[Call]) -> None:
        """What was under way at a worker that ended. `go_on` follows when it is known who is left."""
        orphans = []
        for call in calls:
            if call is self._retrying:
                self._retrying = None
            if call.answer.done():
                call.settle()
            elif call.begun:
                self._blame(call)
            else:
                call.question = replace(call.question, solo=True)
                orphans.append(call)
        if orphans:
            self._count("retried", len(orphans))
            log.warning("worker lost, its calls are asked again", worker=worker, calls=len(orphans))
            self.waiting.extend(orphans)
            self._loop.call_later(RETRY_PATIENCE, self._give_up, orphans)

    def replied(self, call: Call) -> None:
        """A worker has answered a call, perhaps the one that the others wait for."""
        if call is self._retrying:
            self._retrying = None
            self._loop.call_soon(self.go_on)

    def go_on(self) -> None:
        """One at a time, so that the one that kills its worker is known by it, and takes no other along."""
        while self.waiting and self._retrying is None:
            if self.waiting[0].answer.done():
                self.waiting.popleft().settle()
                continue
            lane = self._lane_for(self.waiting[0].version)
            if lane is None:
                return  # until a worker says that it holds the version, or patience ends
            self._retrying = self.waiting.popleft()
            lane.send(self._retrying)

    def _blame(self, call: Call) -> None:
        """Two workers have died under this call, the second time alone: it is what they died of."""
        self._count("lost", 1)
        self._refused[_digest(call.question.key, call.body)] = time.monotonic() + REFUSED_FOR
        log.error("a request ended two workers and is refused from now on", seconds=REFUSED_FOR)
        call.fail(WorkerLost("the worker ended while it computed this input, and so did the next one"))
        call.settle()

    def _give_up(self, orphans: list[Call]) -> None:
        """Nobody has come for them. While they are asked one after the other, each has until its own deadline."""
        if self._retrying is not None:
            self._loop.call_later(RETRY_PATIENCE, self._give_up, orphans)
            return
        for call in orphans:
            if call in self.waiting:
                self.waiting.remove(call)
                self._count("lost", 1)
                call.fail(WorkerLost("the worker ended, and no other one has come in its place"))
                call.settle()


def _digest(key: bytes, body: bytes) -> bytes:
    return blake2b(key + b"\0" + body, digest_size=16).digest()
