"""The agent's way to the database: one call at a time, in a thread, and given up when it does not come back."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from serving.errors import DatabaseUnavailable, DatabaseUnreachable
from serving.logs import logger
from serving.store import Database, open_database

Answer = TypeVar("Answer")

_LONGEST_WAIT = 2.0
_GRACE = 5.0
_MAX_STUCK = 4

log = logger(__name__)


class DatabaseLink:
    """A database that may be gone, locked or silent at any time. Says so once, and once when it is back."""

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout`: seconds to wait for a connection or lock."""
        self._url = url
        # Heartbeats count for five seconds: waiting longer for SQLite's write lock would only delay the routes too.
        self._timeout = min(timeout, _LONGEST_WAIT) if url.startswith("sqlite") else timeout
        self._patience = self._timeout + _GRACE
        self._database: Database | None = None
        self._turn = asyncio.Lock()
        self._hand: _Hand | None = None
        self._stuck: list[_Hand] = []
        self._trouble: dict[str, str] = {}

    def stamp(self) -> object | None:
        """See Database.stamp; None also while it cannot be used. It is asked in the event loop: a file system that hangs
        holds the agent up, whose own files lie there too.
        """
        return None if self._database is None or self._trouble else self._database.stamp()

    async def read(self, act: Callable[[Session], Answer]) -> Answer | None:
        """What `act` reads, in one transaction; None when the database cannot be used now."""

        def work(database: Database) -> Answer:
            with database.reading() as session:
                return act(session)

        return await self._attempt("read", work)

    async def write(self, act: Callable[[Session], None]) -> bool:
        """Whether `act` could be written and committed."""

        def work(database: Database) -> bool:
            with database.writing() as session:
                act(session)
            return True

        return bool(await self._attempt("write", work))

    async def _attempt(self, way: str, work: Callable[[Database], Answer]) -> Answer | None:
        async with self._turn:
            try:
                answer = await self._in_thread(work)
            except (DatabaseUnavailable, SQLAlchemyError, ValueError, TypeError, KeyError) as problem:
                self._say_trouble(way, problem)
                return None
        if self._trouble.pop(way, None) is not None:
            log.info("the database works again", to=way)
        return answer

    def _say_trouble(self, way: str, problem: Exception) -> None:
        kind = type(problem).__name__
        if self._trouble.get(way) != kind:
            log.warning("the database cannot be used, serving goes on with what is known", to=way, reason=str(problem)[:500])  # fmt: skip
        self._trouble[way] = kind

    async def _in_thread(self, work: Callable[[Database], Answer]) -> Answer:
        self._stuck = [each for each in self._stuck if each.is_alive()]
        if len(self._stuck) >= _MAX_STUCK:
            raise DatabaseUnreachable("in use", f"{len(self._stuck)} calls to it have not come back yet")
        if self._database is None:
            self._database = open_database(self._url, self._timeout)
        database, loop = self._database, asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()

        def run() -> None:
            try:
                result = work(database)
            except BaseException as problem:  # noqa: BLE001  # handed to whoever waits
                _settle(loop, answer, lambda problem=problem: answer.set_exception(problem))  # type: ignore[misc]
            else:
                _settle(loop, answer, lambda: answer.set_result(result))
            if self._database is not database:  # given up meanwhile: nobody else will close its connections
                database.close()

        self._use_hand().tasks.put(run)
        try:
            return await asyncio.wait_for(answer, self._patience)
        except TimeoutError:
            self._let_hand_go()
            self._database = None  # with new connections; the one that hangs stays with its thread
            raise DatabaseUnreachable(database.name, f"no answer within {self._patience:g} s") from None

    def close(self) -> None:
        """Close the connections, unless a call still uses one."""
        if self._database is not None and not self._turn.locked():
            self._database.close()
        self._let_hand_go()

    def _use_hand(self) -> "_Hand":
        if self._hand is None:
            self._hand = _Hand()
            self._hand.start()
        return self._hand

    def _let_hand_go(self) -> None:
        """It ends with what it is at, if that ever ends."""
        if self._hand is not None:
            self._hand.tasks.put(None)
            self._stuck.append(self._hand)
            self._hand = None


class _Hand(threading.Thread):
    """Makes the calls. A daemon: one that hangs must hold up neither the next call nor the end of the process."""

    def __init__(self) -> None:
        super().__init__(name="database", daemon=True)
        self.tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run(self) -> None:
        """Until None comes."""
        while (task := self.tasks.get()) is not None:
            task()


def _settle(loop: asyncio.AbstractEventLoop, answer: "asyncio.Future[Answer]", act: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        loop.call_soon_threadsafe(lambda: None if answer.done() else act())
