"""Answers against the log of predictions: each answered request stands in the database exactly once."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from sqlalchemy import text

from benchmarks.kills.verdict import Verdict
from benchmarks.under_load.exchange import Outcome
from benchmarks.waiting import wait_for
from serving.spool import spool_state
from serving.store import Database
from serving.store.rollups import RESOLUTIONS

_SHIPPED_GUARD = 120.0


def answered_ids(outcomes: Iterable[Outcome]) -> list[bytes]:
    """The log's keys of all requests that were answered with 200."""
    return [each.id for each in outcomes if each.status == 200]


def wait_until_shipped(replica_folder: Path) -> None:
    """Returns when nothing waits in the data plane's spools any more."""
    wait_for(lambda: spool_state(replica_folder / "spool").waiting_bytes == 0, "an empty spool", _SHIPPED_GUARD)


def missing_of(database: Database, answered: Collection[bytes]) -> int:
    """How many of these requests are not in the database."""
    return len(set(answered) - set(_stored(database)))


def judge_ledger(verdict: Verdict, database: Database, answered: Collection[bytes], lost_may_be: int = 0) -> None:
    """Each of them is there, once, and counted once; `lost_may_be` of them were counted as lost, at most."""
    stored = _stored(database)
    missing = sum(1 for each in answered if each not in stored)
    twice = sum(count - 1 for count in Counter(answered).values())
    verdict.require(twice == 0, f"{twice} requests were given the id of another one")
    verdict.require(missing <= lost_may_be, f"{missing} answered requests are not in the database")
    for resolution, counted in _rolled_up(database).items():
        verdict.require(
            counted == len(stored),
            f"roll-ups of {resolution} s count {counted} requests; the log has {len(stored)}",
        )
    verdict.figure("answered with 200, of these not in the database", f"{len(answered)}, {missing}")


def _stored(database: Database) -> Counter[bytes]:
    """Requests, with their number of rows."""
    with database.reading() as session:
        found = session.connection().execute(text("SELECT id, count(*) FROM prediction GROUP BY id"))
        return Counter({as_bytes(row[0]): row[1] for row in found})


def _rolled_up(database: Database) -> dict[int, int]:
    with database.reading() as session:
        found = session.connection().execute(text("SELECT resolution, sum(n) FROM rollup GROUP BY resolution"))
        counted = {int(resolution): int(n) for resolution, n in found}
    return {resolution: counted.get(resolution, 0) for resolution in RESOLUTIONS}


def as_bytes(id: object) -> bytes:
    """A key as SQLite gives it, or PostgreSQL's driver."""
    return bytes(id) if isinstance(id, bytes | memoryview) else id.bytes  # type: ignore[attr-defined]  # a UUID
