"""Item 5: creation and migration of the database are killed. It is at the old schema or at the new one, never between."""

import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from benchmarks.kills.databases import integrity
from benchmarks.kills.verdict import Verdict
from benchmarks.kills.victims import FAILED, Victim, ended_afterwards, read_until
from benchmarks.waiting import NotInTime
from control_plane.storage.setup import downgrade_database, prepare_database
from serving.errors import DatabaseEmpty, DatabaseMissing
from serving.store import open_database
from serving.store.schema import CURRENT, REVISIONS

_TIMEOUT = 20.0
_GUARD = 60.0
_BEGAN, _DONE = "began", "done"
# The longest migration is far below this many statements: a guard against counting for ever.
_MOST_STATEMENTS = 2000
_NOTHING = "nothing"
_OLDER: tuple[str, ...] = REVISIONS[:-1]


@dataclass(frozen=True)
class _Way:
    """One way from schema to schema. `work` gets the data folder; the ends are revisions or `nothing`."""

    name: str
    before: str
    after: str
    work: Callable[[Path], None]


def first_start(home: Path) -> None:
    """What `switchyard up` does before it starts anything: creates, or brings up to date."""
    prepare_database(_url(home), _TIMEOUT, embedded_in=home)


def take_back(home: Path) -> None:
    """What `switchyard database downgrade base` does."""
    downgrade_database(_url(home), _TIMEOUT, "base")


WAYS = (
    _Way("creation", _NOTHING, CURRENT, first_start),
    *(_Way(f"migration from {old}", old, CURRENT, first_start) for old in _OLDER),
    _Way("downgrade to none", CURRENT, _NOTHING, take_back),
)


def kill_migrations(verdict: Verdict, rng: random.Random, kills: int) -> None:
    """Each way is killed at every one of its statements in turn, and at `kills` random moments."""
    with tempfile.TemporaryDirectory(prefix="switchyard-") as folder:
        trial = _Trial(verdict, Path(folder))
        for way in WAYS:
            seconds = trial.undisturbed(way)
            for number in trial.statements(way):
                trial.kill_at_statement(way, number)
            for _ in range(kills):
                trial.kill_at_moment(way, rng.uniform(0, seconds))
            trial.report(way)


def work_once(way: _Way, home: Path, statement: int | None, connection: Connection) -> None:
    """Do it; with `statement`, die right before that one. Commits count as statements; the first is 0."""
    if statement is not None:
        _die_at(statement)
    connection.send((_BEGAN,))
    way.work(home)
    connection.send((_DONE,))


def _die_at(statement: int) -> None:
    """SIGKILL from inside, where no clock could aim: before the statement or commit with this number."""
    counted = iter(range(_MOST_STATEMENTS))

    def count(*_: Any) -> None:
        if next(counted) == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)


class _Trial:
    """Kills a way again and again, each time from a fresh copy of where it begins."""

    def __init__(self, verdict: Verdict, folder: Path) -> None:
        self._verdict, self._folder = verdict, folder
        self._found: dict[str, list[str]] = {}
        self._number = 0

    def undisturbed(self, way: _Way) -> float:
        """Seconds that it takes when nobody kills it."""
        home = self._home(way)
        victim = Victim(work_once, way, home, None)
        with ended_afterwards([victim]):
            _await(victim, _BEGAN)
            began = time.monotonic()
            _await(victim, _DONE)
            seconds = time.monotonic() - began
        self._verdict.require(_schema(home) == way.after, f"{way.name} ended at {_schema(home)}, not at {way.after}")
        return seconds

    def statements(self, way: _Way) -> Iterator[int]:
        """0, 1, 2 ... until a run was not killed any more: it had fewer statements than that."""
        self._found[way.name] = []
        for number in range(_MOST_STATEMENTS):
            kills = len(self._found[way.name])
            yield number
            if len(self._found[way.name]) == kills:
                return

    def kill_at_statement(self, way: _Way, number: int) -> None:
        home = self._home(way)
        victim = Victim(work_once, way, home, number)
        with ended_afterwards([victim]):
            # Its end, by its own hand, ends the reading too.
            is_done = read_until([victim], lambda _, message: message[0] == _DONE, _GUARD)
        if not is_done:
            self._judge(way, home, f"at statement {number}")

    def kill_at_moment(self, way: _Way, seconds: float) -> None:
        home = self._home(way)
        victim = Victim(work_once, way, home, None)
        with ended_afterwards([victim]):
            _await(victim, _BEGAN)
            time.sleep(seconds)
        self._judge(way, home, f"after {seconds:.3f} s")

    def report(self, way: _Way) -> None:
        """How many kills, and where they left the database."""
        found = self._found[way.name]
        places = ", ".join(f"{found.count(each)} at {each}" for each in sorted(set(found)))
        self._verdict.figure(f"{way.name}: kills, and where they left it", f"{len(found)}: {places}")

    def _judge(self, way: _Way, home: Path, when: str) -> None:
        file = _file(home)
        found = _schema(home)
        self._found[way.name].append(found)
        self._require(way, when, found in (way.before, way.after), f"left the database {found}")
        if file.exists():
            self._require(way, when, (said := integrity(file)) == "ok", f"integrity_check: {said}")
        try:
            first_start(home)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next start did not work
            self._require(way, when, way.after == _NOTHING and found == _NOTHING, f"the next start failed: {error}")
            return
        self._require(way, when, _schema(home) == CURRENT, f"the next start left the database {_schema(home)}")
        self._require(way, when, file.stat().st_mode & 0o077 == 0, "the next start left the file open to other users")

    def _require(self, way: _Way, when: str, held: bool, problem: str) -> None:  # noqa: FBT001 - as Verdict.require
        self._verdict.require(held, f"{way.name} killed {when}: {problem}")

    def _home(self, way: _Way) -> Path:
        """A data folder with a database where the way begins; made once, then copied."""
        template = self._folder / f"at-{way.before}"
        if not template.exists():
            template.mkdir()
            if way.before != _NOTHING:
                first_start(template)
            if way.before not in (_NOTHING, CURRENT):
                downgrade_database(_url(template), _TIMEOUT, way.before)
        self._number += 1
        return Path(shutil.copytree(template, self._folder / f"trial-{self._number}"))


def _schema(home: Path) -> str:
    """The revision, `nothing`, or a description of something in between."""
    database = open_database(_url(home), _TIMEOUT)
    try:
        found = database.schema
    except (DatabaseMissing, DatabaseEmpty):
        return _NOTHING
    finally:
        database.close()
    with closing(sqlite3.connect(_file(home))) as connection:
        query = (
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('alembic_version', 'sqlite_sequence')"
        )
        tables = sorted(str(row[0]) for row in connection.execute(query))
    if found is None:
        return f"without a revision and with the tables {', '.join(tables)}" if tables else _NOTHING
    return found if tables else f"at {found} without tables"


def _await(victim: Victim, word: str) -> None:
    said: list[str] = []

    def heed(_: Victim, message: tuple[Any, ...]) -> bool:
        said.append(f"{message[0]} {message[1:]}" if message[0] == FAILED else message[0])
        return bool(message[0] == word)

    if not read_until([victim], heed, _GUARD):
        raise NotInTime(f"'{word}' from a process that said {said}", _GUARD)


def _file(home: Path) -> Path:
    return home / "switchyard.db"


def _url(home: Path) -> str:
    return f"sqlite:///{_file(home)}"
