"""The HTTP process's questions to the agent: what does the database know of these request ids of clients?"""

import asyncio
import itertools
from collections.abc import Callable

from serving.channel import Frame, Kind, pack
from serving.errors import BrokenChannel
from serving.logs import logger
from serving.stored_answer import Sought, StoredAnswer, pack_sought, unpack_found

PATIENCE = 0.05
"""Seconds until a request is computed without having heard of the database."""

_PAUSE = 1.0
"""Seconds that nobody is asked after that, so that an outage is not paid for by each request."""

log = logger(__name__)

_Waiting = dict[Sought, "asyncio.Future[StoredAnswer | None]"]


class LoggedAnswers:
    """All questions of a tick of the event loop go in one frame, and wait by one timer."""

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        """`send` gives a frame to the agent, and says whether there is one. Make it inside the running event loop."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._next: _Waiting = {}
        self._asked: dict[int, tuple[_Waiting, asyncio.TimerHandle]] = {}
        self._pause_until = 0.0

    async def find(self, sought: Sought) -> StoredAnswer | None:
        """What the database knows of it; None where that is nothing, or does not come within 50 ms."""
        if self._loop.time() < self._pause_until:
            return None
        answer = self._next.get(sought)
        if answer is None:
            if not self._next:
                self._loop.call_soon(self._ask)
            answer = self._next[sought] = self._loop.create_future()
        # Shielded: others of this tick may wait for the same.
        return await asyncio.shield(answer)

    def take(self, frame: Frame) -> None:
        """A FOUND frame. Raises BrokenChannel when it is none."""
        asked = self._asked.pop(frame.id, None)
        if asked is None:
            return  # too late
        waiting, timer = asked
        timer.cancel()
        try:
            found = unpack_found(frame.payload)
        except ValueError as problem:
            _settle(waiting, {})
            raise BrokenChannel(f"a FOUND that cannot be read ({problem})") from None
        if found is None:
            self._pause()
        _settle(waiting, {each.key: each for each in found or ()})

    def lost(self) -> None:
        """The line is lost: whoever waits gets nothing."""
        for number in list(self._asked):
            self._give_up(number)

    def _ask(self) -> None:
        waiting, self._next = self._next, {}
        number = next(self._numbers)
        if not self._send(pack(Kind.SEEK, number, pack_sought(waiting))):
            _settle(waiting, {})
            return
        self._asked[number] = waiting, self._loop.call_later(PATIENCE, self._give_up, number)

    def _give_up(self, number: int) -> None:
        waiting, timer = self._asked.pop(number)
        timer.cancel()
        self._pause()
        _settle(waiting, {})

    def _pause(self) -> None:
        self._pause_until = self._loop.time() + _PAUSE


def _settle(waiting: _Waiting, found: dict[bytes, StoredAnswer]) -> None:
    for sought, answer in waiting.items():
        if not answer.done():
            answer.set_result(found.get(sought.key))
