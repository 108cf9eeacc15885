"""Opening the database, and sessions on it. What exists is opened; nothing is ever created by accident."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlmodel import Session

from serving.errors import (
    DatabaseDamaged,
    DatabaseEmpty,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    DatabaseUnavailable,
    DatabaseUnreachable,
    SchemaNewer,
    SchemaOlder,
)
from serving.logs import mask
from serving.store.schema import CURRENT, REVISIONS

# PostgreSQL: lock_not_available, deadlock_detected, read_only_sql_transaction.
_LOCKED, _READ_ONLY = {"55P03", "40P01"}, {"25006"}


@dataclass(frozen=True)
class Database:
    """An address with its engine. Making one touches nothing; `check` and the sessions do."""

    url: URL
    timeout: float
    engine: Engine = field(repr=False)
    _seen: dict[str, int] = field(default_factory=dict, repr=False, compare=False)  # inode

    @property
    def name(self) -> str:
        """What to call it in messages: the file, or the address without its password."""
        return str(self.file) if self.file else mask(self.url.render_as_string(hide_password=True))

    @property
    def dialect(self) -> str:
        """Which kind it is: sqlite or postgresql."""
        return self.url.get_backend_name()

    @cached_property  # asked in each transaction
    def file(self) -> Path | None:
        """The SQLite file; None on PostgreSQL."""
        return _sqlite_file(self.url)

    @cached_property
    def _engines(self) -> dict[bool, Engine]:
        """For reading only, and for writing; both use the same connections."""
        return {read_only: self.engine.execution_options(read_only=read_only) for read_only in (True, False)}

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction that may write; committed at the end, rolled back on an error.

        On SQLite it takes the write lock at once (`BEGIN IMMEDIATE`): a transaction that reads first and writes
        later would fail with SQLITE_BUSY_SNAPSHOT as soon as somebody else wrote in between, timeout or not.

        Raises:
            DatabaseUnavailable: the database cannot be used; nothing was changed.
        """
        with self._session(read_only=False) as session:
            yield session
            session.commit()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent read; never waits for a writer on SQLite.

        Raises:
            DatabaseUnavailable: the database cannot be used.
        """
        with self._session(read_only=True) as session:
            yield session

    @contextmanager
    def _session(self, *, read_only: bool) -> Iterator[Session]:
        with self.translated():
            self._require_file()
            with Session(self._engines[read_only], expire_on_commit=False) as session:
                # In this very transaction: another host may have upgraded the database since the last one.
                self._require_current(read_schema(session.connection()))
                yield session

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns what the drivers raise into our errors.

        Raises:
            DatabaseUnavailable: in place of the driver's operational errors.
        """
        try:
            yield
        except DBAPIError as error:
            unavailable = _translate(self, error)
            if unavailable is None:
                raise
            raise unavailable from error

    def check(self) -> None:
        """Make sure that this is a database of ours, with the schema this code knows.

        Raises:
            DatabaseUnavailable: and which, says its subclass.
        """
        self._require_current(self.schema)

    @property
    def schema(self) -> str | None:
        """The schema revision it holds; None when it holds no tables of ours.

        Raises:
            DatabaseUnavailable: it cannot be read.
        """
        with self.translated():
            self._require_file()
            with self._engines[True].connect() as connection:
                return read_schema(connection)

    def stamp(self) -> object | None:
        """Something that is another after each commit of anybody; None where that is not to be had, as on PostgreSQL.

        A few calls of the system, where a transaction takes a hundred times as long. Two commits within a tick of the
        kernel's clock may leave it as it was.
        """
        if self.file is None:
            return None
        file = os.path.realpath(self.file)  # SQLite puts the log beside what a link leads to
        return _file_stamp(file), _file_stamp(f"{file}-wal")

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def _require_current(self, found: str | None) -> None:
        if found is None:
            raise DatabaseEmpty(self.name)
        if found != CURRENT:
            raise (SchemaOlder if found in REVISIONS else SchemaNewer)(self.name, found, CURRENT)

    def _require_file(self) -> None:
        """SQLite would go on writing into a file that was deleted or replaced under an open connection.

        By `stat` only: opening the file here and closing it again would drop every lock this process holds on it
        (POSIX locks belong to the process, not to the descriptor), and with them SQLite's protection.
        """
        if self.file is None:
            return
        try:
            found = self.file.stat()
        except FileNotFoundError as error:
            self.engine.dispose()
            self._seen.clear()
            raise DatabaseMissing(self.name) from error
        except OSError as error:
            raise DatabaseUnreachable(self.name, os.strerror(error.errno or 0)) from error
        if found.st_size == 0:
            raise DatabaseEmpty(self.name)
        if self._seen.setdefault("inode", found.st_ino) != found.st_ino:  # replaced, by a backup perhaps
            self.engine.dispose()
            self._seen.clear()


# Asked in each transaction, so without SQLAlchemy's inspector, which takes longer than most of them.
_HAS_SCHEMA = {
    "sqlite": text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"),
    "postgresql": text("SELECT to_regclass('alembic_version')"),
}
_SCHEMA = text("SELECT version_num FROM alembic_version")


def open_database(url: str, timeout: float) -> Database:
    """A database that must exist already. `timeout`: seconds to wait for a connection or a lock.

    Raises:
        DatabaseUnreachable: the address cannot be understood.
    """
    return connect(parse_url(url), timeout, create=False)


def connect(url: URL, timeout: float, *, create: bool) -> Database:
    """As `open_database`; with `create`, SQLite makes the file. Only setting up a new database does that."""
    if url.get_backend_name() == "sqlite":
        return Database(url, timeout, _sqlite_engine(url, timeout, create=create))
    return Database(url, timeout, _postgresql_engine(url, timeout))


def parse_url(url: str) -> URL:
    """Our two kinds of address, with the driver filled in.

    Raises:
        DatabaseUnreachable: neither SQLite nor PostgreSQL.
    """
    expected = "expected sqlite:////absolute/file.db or postgresql://user:password@host/name"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number, as of a password with @ or /
        raise DatabaseUnreachable("(not an address)", f"{expected}, with @ : / in a password as %40 %3A %2F") from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    raise DatabaseUnreachable(mask(parsed.render_as_string(hide_password=True)), expected)


def read_schema(connection: Connection) -> str | None:
    """The revision that Alembic recorded; None without its table."""
    if connection.execute(_HAS_SCHEMA[connection.dialect.name]).scalar() is None:
        return None
    return connection.execute(_SCHEMA).scalar_one_or_none()


def _file_stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116  # four times a second
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sqlite_file(url: URL) -> Path | None:
    return Path(url.database).absolute() if url.get_backend_name() == "sqlite" and url.database else None


def _sqlite_engine(url: URL, timeout: float, *, create: bool) -> Engine:
    file = _sqlite_file(url)
    mode = "rwc" if create else "rw"

    def open_connection() -> sqlite3.Connection:
        # The plain path would create a missing file; the URI form can be told not to.
        address = f"{file.as_uri() if file else ''}?mode={mode}"
        connection = sqlite3.connect(address, uri=True, timeout=timeout, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    engine = create_engine(url, creator=open_connection, hide_parameters=True)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _postgresql_engine(url: URL, timeout: float) -> Engine:
    options = f"-c lock_timeout={int(timeout * 1000)} -c timezone=UTC"
    return create_engine(
        url,
        hide_parameters=True,  # a failed statement must not carry feature values into the log
        pool_pre_ping=True,
        connect_args={"connect_timeout": max(1, int(timeout)), "options": options},
    )


def _translate(database: Database, error: DBAPIError) -> DatabaseUnavailable | None:
    """Our error for the driver's; None where it is a fault of the statement and not of the database."""
    original: Any = error.orig
    if database.file is not None:
        return _translate_sqlite(database, str(original))
    if original.sqlstate in _LOCKED:
        return DatabaseLocked(database.name, database.timeout)
    if original.sqlstate in _READ_ONLY:
        return DatabaseReadOnly(database.name)
    if original.sqlstate == "3D000":  # invalid_catalog_name
        return DatabaseMissing(database.name)
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return DatabaseUnreachable(database.name, " ".join(str(original).split())[:300])
    return None


def _translate_sqlite(database: Database, message: str) -> DatabaseUnavailable | None:
    if "locked" in message or "busy" in message:
        return DatabaseLocked(database.name, database.timeout)
    if "readonly" in message or "disk is full" in message or "disk I/O" in message:
        return DatabaseReadOnly(database.name)
    if "unable to open" in message:
        return DatabaseMissing(database.name) if not Path(database.name).exists() else DatabaseReadOnly(database.name)
    if "malformed" in message or "not a database" in message:
        return DatabaseDamaged(database.name, message)
    return None
