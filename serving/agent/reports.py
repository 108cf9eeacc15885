"""What the agent reads from the database and writes into it: desired state in, heartbeat and reports out."""

import time
from datetime import UTC, datetime
from typing import Any

from sqlmodel import Session

from serving.agent.database import DatabaseLink
from serving.agent.options import AgentOptions
from serving.agent.standing import Standing
from serving.agent.tables import TableServer
from serving.agent.workers import Workers
from serving.desired import DesiredState, Key, VersionReport
from serving.logs import logger
from serving.store.replicas import (
    forget_version,
    heartbeat,
    read_desired,
    read_generation,
    read_reports,
    report_version,
    say_goodbye,
)

LOOK = 1.0
"""Seconds after which the generation is read though nobody seems to have written anything."""
REFRESH = 5.0
"""Seconds after which everything desired is read again, whatever the generation."""
HEARTBEAT = 1.0
"""Seconds between two heartbeats."""
_FIRST_HOLDS = 2.0

log = logger(__name__)


class Reports:
    """Never more than one call to the database at a time; one that fails is made again by the next turn."""

    def __init__(
        self, database: DatabaseLink, standing: Standing, workers: Workers, tables: TableServer, options: AgentOptions
    ) -> None:
        self._database = database
        self._standing = standing
        self._workers = workers
        self._tables = tables
        self._replica = options.replica
        self._url = options.url
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._looked_at = self._read_at = self._beat_at = float("-inf")
        self._stamp: object | None = None
        self._reported: dict[Key, VersionReport] = {}
        self._problems: tuple[str, ...] = ()
        self._applied: tuple[int, dict[str, int]] = (0, {})

    async def read(self) -> bool:
        """Look whether something else is desired, and follow it. Whether everything was read."""
        now = time.monotonic()
        due = now - self._read_at >= REFRESH or not self._standing.certain
        stamp = self._database.stamp()  # before it is read: what is written meanwhile will be looked for again
        if not due and stamp is not None and stamp == self._stamp and now - self._looked_at < LOOK:
            return False
        known = None if due else self._standing.desired.generation
        answer = await self._database.read(lambda session: _read(session, self._replica, known))
        if answer is None:
            return False
        self._stamp, self._looked_at = stamp, now
        if answer[0] is None:
            return False
        self._read_at = time.monotonic()
        # Read anew each time: it may be another database than a moment ago, restored from a backup.
        desired, self._reported = answer
        self._say_problems(desired)
        self._standing.follow(desired, self._reported, self._read_at)
        return True

    async def write(self) -> None:
        """Heartbeat and reports, when due. Not before the workers have said what they hold: reports would be wrong."""
        settled = self._standing.complete() or time.monotonic() - self._started >= _FIRST_HOLDS
        if not self._standing.certain or not settled:
            return
        reports = self._standing.reports()
        news = {key: report for key, report in reports.items() if self._reported.get(key) != report}
        gone = [key for key in self._reported if key not in reports]
        applied = self._tables.applied or self._applied
        beat = time.monotonic() - self._beat_at >= HEARTBEAT
        if not (news or gone or beat or applied != self._applied):
            return
        workers = [self._worker_facts(worker) for worker in range(self._standing.spare + 1)]

        def write(session: Session) -> None:
            for key, report in news.items():
                report_version(session, self._replica, key, report)
            for key in gone:
                forget_version(session, self._replica, key)
            heartbeat(
                session, self._replica, url=self._url, started_at=self._started_at,
                generation=applied[0], revisions=applied[1], workers=workers,
            )  # fmt: skip

        if await self._database.write(write):
            self._reported, self._applied = reports, applied
            self._beat_at = time.monotonic()

    async def say_goodbye(self) -> None:
        """This replica counts as gone from now on."""
        if self._standing.certain:
            await self._database.write(lambda session: say_goodbye(session, self._replica))

    def _say_problems(self, desired: DesiredState) -> None:
        for each in desired.problems:
            if each not in self._problems:
                log.warning("the database says what cannot be followed", problem=each)
        self._problems = desired.problems

    def _worker_facts(self, worker: int) -> dict[str, Any]:
        line = self._workers.lines.get(worker)
        rss = line.rss_mb() if line is not None else None
        return {
            "id": worker,
            "pid": line.hello.pid if line is not None and line.hello is not None else None,
            "spare": worker == self._standing.spare,
            "rss_mb": None if rss is None else round(rss, 1),
        }


def _read(
    session: Session, replica: str, known: int | None
) -> tuple[DesiredState, dict[Key, VersionReport]] | tuple[None, None]:
    """Everything, unless the generation is the known one still."""
    if known is not None and read_generation(session) == known:
        return None, None
    return read_desired(session), read_reports(session, replica)
