"""What HTTP processes ask of the prediction log: all that waits in one query."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from serving.agent.database import DatabaseLink
from serving.channel import Frame, Kind, pack
from serving.logs import logger
from serving.store.answers import MOST_AT_ONCE, find_answers
from serving.stored_answer import Sought, pack_found, unpack_sought

_PAUSE_PER_ID = 0.00025
_LONGEST_PAUSE = 0.005
"""Seconds after a query: what comes meanwhile shares the next one, which costs the machine less than two. A single client
that asks one thing after the other has nobody to share with, and does not wait.
"""

_STALE = 0.05
"""Seconds after which nobody waits any more: PATIENCE of serving/logged_answers.py."""

log = logger(__name__)


class _Question(NamedTuple):
    number: int
    sought: list[Sought]
    reply: Callable[[bytes], None]
    stale_at: float


class Lookups:
    """Answers SEEK frames. Has a way to the database of its own: a write that waits for a lock holds up none of them."""

    def __init__(self, database: DatabaseLink) -> None:
        """Make it inside the running event loop; `start` it, and `close` it."""
        self._database = database
        self._waiting: list[_Question] = []
        self._something = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._work = asyncio.create_task(self._answer_all())

    async def close(self) -> None:
        """Answer no more."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        self._database.close()

    def take(self, frame: Frame, reply: Callable[[bytes], None]) -> None:
        """A SEEK frame; `reply` sends one back. Raises ValueError when it is none."""
        now = asyncio.get_running_loop().time()
        self._waiting = [each for each in self._waiting if each.stale_at > now]
        self._waiting.append(_Question(frame.id, unpack_sought(frame.payload), reply, now + _STALE))
        self._something.set()

    async def _answer_all(self) -> None:
        # Connects, which takes longer than anybody waits.
        await self._database.read(lambda session: find_answers(session, []))
        while True:
            await self._something.wait()
            self._something.clear()
            asked = await self._answer(self._take_waiting())
            if self._waiting:
                self._something.set()
            await asyncio.sleep(min(_LONGEST_PAUSE, (asked - 1) * _PAUSE_PER_ID))

    def _take_waiting(self) -> list[_Question]:
        """As many as one query may have, and at least one."""
        now = asyncio.get_running_loop().time()
        fresh = [each for each in self._waiting if each.stale_at > now]
        taken: list[_Question] = []
        room = MOST_AT_ONCE
        while fresh and (not taken or len(fresh[0].sought) <= room):
            room -= len(fresh[0].sought)
            taken.append(fresh.pop(0))
        self._waiting = fresh
        return taken

    async def _answer(self, questions: list[_Question]) -> int:
        """How many ids were asked for."""
        sought = [each for question in questions for each in question.sought]
        if not sought:
            return 0
        found = await self._database.read(lambda session: find_answers(session, sought))
        for each in questions:
            keys = {pair.key for pair in each.sought}
            mine = None if found is None else [answer for answer in found if answer.key in keys]
            each.reply(pack(Kind.FOUND, each.number, pack_found(mine)))
        return len(sought)
