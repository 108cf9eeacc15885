"""Which commits survive a power cut on SQLite."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry

from serving.store import Database


class Durability:
    """SQLite writes commits to the disk in its own time, which is quick; in order, so that only the last may be lost.

    How far a spool was read is lost with the rows then, and both come again, as long as the segment is there. So before
    a segment goes, one commit is waited for, and with it all before. PostgreSQL waits at every commit.
    """

    def __init__(self, database: Database) -> None:
        """For a database whose connections only one thread uses at a time."""
        self._wanted = "NORMAL"
        if database.file is not None:
            # When a connection is taken, not later: SQLite refuses to change it inside a transaction.
            event.listen(database.engine, "checkout", self._set)

    @contextmanager
    def of_commit(self, *, full: bool) -> Iterator[None]:
        """A transaction in this block is safe on disk when it is committed, if `full`."""
        self._wanted = "FULL" if full else "NORMAL"
        try:
            yield
        finally:
            self._wanted = "NORMAL"

    def _set(self, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        if record.info.get("synchronous", "NORMAL") != self._wanted:
            connection.execute(f"PRAGMA synchronous={self._wanted}")
            record.info["synchronous"] = self._wanted
