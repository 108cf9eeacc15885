"""Item 9 under load: routes are written while predictions are shipped flat out. A rollback must not wait for a log."""

import random
import tempfile
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import text

from benchmarks.kills.databases import each_database
from benchmarks.kills.spool import record_flat_out, ship_until_killed
from benchmarks.kills.verdict import Verdict
from benchmarks.kills.victims import FAILED, Victim, ended_afterwards
from benchmarks.kills.writer import MODEL, prepare_model
from benchmarks.waiting import wait_for
from control_plane.storage.leases import take_lease
from control_plane.storage.routes import lease_name, write_routes
from control_plane.storage.setup import create_database
from serving.routing import Route
from serving.spool import spool_state
from serving.store import Database, open_database

LIMIT = 0.25
"""Seconds in which 99 of 100 writes have to be committed."""
_TIMEOUT = 20.0
_LEASE_SECONDS = 60.0
_GUARD = 60.0
_MOST_BETWEEN = 0.05
_BACKLOG = 4 << 20
"""Bytes that wait before the first write: as after an outage."""


def write_while_shipping(verdict: Verdict, rng: random.Random, writes: int) -> None:
    """On SQLite, and on PostgreSQL where there is one."""
    for name, url in each_database():
        write_on(url, verdict, rng, writes, name)


def write_on(url: str, verdict: Verdict, rng: random.Random, writes: int, name: str) -> None:
    """So many writes of routes, while one process records more than another, which ships, can take away."""
    create_database(url, _TIMEOUT)
    with (
        tempfile.TemporaryDirectory(prefix="switchyard-") as folder,
        closing(open_database(url, _TIMEOUT)) as database,
        ended_afterwards([]) as crew,
    ):
        prepare_model(database)
        spool = Path(folder) / "spool"
        crew.append(Victim(record_flat_out, Path(folder), 0))
        wait_for(lambda: spool_state(spool).waiting_bytes > _BACKLOG, "a backlog", _GUARD)
        crew.append(Victim(ship_until_killed, url, Path(folder)))
        wait_for(lambda: _count(database) > 0, "the first predictions in the database", _GUARD)
        before, began = _count(database), time.monotonic()
        took, idle = _write(database, rng, spool, writes)
        shipped, seconds = _count(database) - before, time.monotonic() - began
        for each in crew:
            verdict.problems += [f"{name}: {fact}" for word, fact in each.said() if word == FAILED]
            verdict.require(not each.has_ended, f"{name}: a process had ended by itself")
    _judge(verdict, name, took, idle)
    verdict.figure(f"{name}: predictions shipped meanwhile", f"{shipped} requests, {shipped / seconds:.0f}/s")


def _write(database: Database, rng: random.Random, spool: Path, writes: int) -> tuple[list[float], int]:
    """Seconds of each write, and before how many of them nothing waited to be shipped."""
    took, idle = [], 0
    for _ in range(writes):
        time.sleep(rng.uniform(0, _MOST_BETWEEN))
        idle += int(spool_state(spool).waiting_bytes == 0)
        weight = rng.randrange(101) / 100
        began = time.monotonic()
        with database.writing() as session:
            lease = take_lease(session, lease_name(MODEL), "trial", _LEASE_SECONDS)
            write_routes(
                session, lease, MODEL, [Route("1", weight), Route("2", 1 - weight)], reason="trial", aliases={}
            )
        took.append(time.monotonic() - began)
    return took, idle


def _count(database: Database) -> int:
    """Requests in the database."""
    with database.reading() as session:
        # The roll-ups, since they are few: to count the log itself would take longer than what is measured here.
        found = session.connection().execute(text("SELECT sum(n) FROM rollup WHERE resolution = 3600")).scalar_one()
        return int(found or 0)


def _judge(verdict: Verdict, name: str, took: list[float], idle: int) -> None:
    ordered = sorted(took)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    verdict.figure(
        f"{name}: {len(took)} writes of routes, committed in",
        f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.0f} ms, max {ordered[-1] * 1000:.0f} ms",
    )
    verdict.require(p99 < LIMIT, f"{name}: p99 of the writes is {p99 * 1000:.0f} ms, not under {LIMIT * 1000:.0f} ms")
    verdict.require(idle == 0, f"{name}: before {idle} writes nothing waited to be shipped: it was not flat out")
