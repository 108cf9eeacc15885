"""The agent against real databases, with scripted workers and HTTP processes at the other ends of real sockets."""

import asyncio
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import pytest
from sqlmodel import Session, select, update
from structlog.testing import capture_logs

from serving.agent import AgentOptions, run_agent
from serving.agent.database import DatabaseLink
from serving.agent.process import Agent
from serving.channel import Decoder, Frame, Hello, Kind, SocketFolder, pack
from serving.contracts import Held, ModelKind
from serving.desired import Key
from serving.store import Database, RouteGenerationRow, RouteRow, RoutingRow, replicas
from serving.store.clock import database_now_ms
from serving.store.replicas import read_generation
from serving.store.tables import DesiredVersionRow, ReplicaRow, ReplicaVersionRow, ServingConfigRow
from tests.processes import PYTHON, clean_environment, wait_until
from tests.rows import kept_version

REPLICA = "127.0.0.1:8000"
DIGEST = "0" * 64  # of kept_version
SPARE = 2
GUARD = 20.0

Found = TypeVar("Found")


async def until(condition: Callable[[], Found | None], what: str) -> Found:
    """The first true value of the condition, while everything else in this loop goes on."""
    end = asyncio.get_running_loop().time() + GUARD
    while asyncio.get_running_loop().time() < end:
        found = condition()
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {GUARD:g} s: {what}")


def held(model_id: str, version: str, seconds: float = 0.1) -> Held:
    """What a worker says of a version."""
    return Held(
        model_id, version, DIGEST, ModelKind.CLASSIFIER, [0, 1], True, "sklearn", "", seconds, [0.02, 0.01], 5.0
    )


class FakeWorker:
    """A worker that loads whatever it is told to, unless a script says otherwise."""

    def __init__(self, address: str, worker: int) -> None:
        self.address = address
        self.worker = worker
        self.generation = 0
        self.holds: dict[Key, Held] = {}
        self.told: list[dict[str, Any]] = []
        self.script: Callable[[dict[str, Any]], dict[str, Any] | None] = self.load
        """From an order to load to the report; None: the process ends."""
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.StreamWriter] = set()

    def load(self, order: dict[str, Any]) -> dict[str, Any] | None:
        new = held(order["model_id"], order["version"], 0.1 * (self.worker + 1))
        self.holds[order["model_id"], order["version"]] = new
        return {"ok": True, "held": asdict(new)}

    def loads(self) -> list[Key]:
        return [(each["model_id"], each["version"]) for each in self.told if each["op"] == "load"]

    async def start(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.address)  # noqa: PTH108  # quick, and of a test
        self.generation += 1
        self._server = await asyncio.start_unix_server(self._serve, self.address)

    async def end(self) -> None:
        """As a kill does it: all connections are gone at once, and all that it held."""
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.transport.abort()
        self._peers.clear()
        self.holds = {}
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peers.add(writer)
        writer.write(Hello(os.getpid(), self.worker, self.generation).pack() + self._holds())
        decoder = Decoder()
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                for frame in decoder.feed(data):
                    await self._take(frame, writer)
        writer.close()

    async def _take(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        order = json.loads(frame.payload)
        self.told.append(order)
        report: dict[str, Any] | None = {"ok": True, "held": None}
        if order["op"] == "load":
            report = self.script(order)
        elif order["op"] == "unload":
            self.holds.pop((order["model_id"], order["version"]), None)
        if report is None:
            await self.end()
            await self.start()
        else:
            writer.write(self._holds() + pack(Kind.REPORT, frame.id, json.dumps(report).encode()))

    def _holds(self) -> bytes:
        return pack(Kind.HOLDS, payload=json.dumps([asdict(each) for each in self.holds.values()]).encode())


class FakeHttp:
    """An HTTP process: takes tables, and confirms them while it `confirms`."""

    def __init__(self) -> None:
        self.confirms = True
        self.tables: list[dict[str, Any]] = []
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, address: str) -> None:
        async def read(reader: asyncio.StreamReader) -> None:
            decoder = Decoder()
            with suppress(ConnectionError):
                while data := await reader.read(2**16):
                    for frame in decoder.feed(data):
                        self.tables.append(json.loads(frame.payload))
                        if self.confirms:
                            self.confirm()

        reader, self._writer = await asyncio.open_unix_connection(address)
        self._task = asyncio.create_task(read(reader))

    def confirm(self) -> None:
        assert self._writer is not None
        generation = {"generation": self.tables[-1]["generation"]}
        self._writer.write(pack(Kind.APPLIED, payload=json.dumps(generation).encode()))

    def routes(self, model_id: str) -> dict[str, float]:
        """The routes it was told last."""
        model = self.tables[-1]["models"].get(model_id) if self.tables else None
        return {each["version"]: each["weight"] for each in model["routes"]} if model else {}

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class House:
    """One data plane without its real workers and HTTP processes."""

    def __init__(self, folder: Path, database_url: str, **given: Any) -> None:
        sockets = SocketFolder(folder / "run", 8000)
        sockets.open()
        self.options = AgentOptions(
            worker_addresses=[sockets.address(worker) for worker in range(SPARE + 1)],
            agent_address=sockets.agent_address,
            database_url=database_url,
            database_timeout=1.0,
            replica_folder=folder / "data-plane-8000",
            artifact_folder=folder / "artifacts",
            replica=REPLICA,
            url="http://127.0.0.1:8000",
            api_processes=1,
            memory_budget_mb=1_000_000,
            log_level="info",
        )
        self.options = replace(self.options, **given)
        self.workers = [FakeWorker(each, worker) for worker, each in enumerate(self.options.worker_addresses)]
        self.https = [FakeHttp() for _ in range(self.options.api_processes)]
        self._sockets = sockets

    @property
    def spare(self) -> FakeWorker:
        return self.workers[SPARE]

    @property
    def proven(self) -> list[str]:
        """Versions on the list of those that a worker starts with."""
        file = self.options.replica_folder / "versions.json"
        return [each["version"] for each in json.loads(file.read_bytes())["versions"]] if file.exists() else []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Workers that can be reached."""
        try:
            for worker in self.workers:
                await worker.start()
            yield
        finally:
            for each in self.https:
                await each.close()
            for worker in self.workers:
                await worker.end()
            self._sockets.close()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """The agent in this very loop, and HTTP processes connected to it."""
        agent = Agent(self.options)
        running = asyncio.create_task(agent.run())
        try:
            await self.connect()
            yield agent
        finally:
            agent.stop()
            await running

    async def connect(self) -> None:
        await until(Path(self.options.agent_address).exists, "the agent listens")
        for each in self.https:
            await each.connect(self.options.agent_address)


def play(scenario: Awaitable[None]) -> None:
    """Run a scenario to its end."""

    async def run() -> None:
        await scenario

    asyncio.run(run())


def want(database: Database, version: str, *, attempt: int = 1, pinned: bool = False) -> None:
    """Ask for a version, as the control plane does."""
    with database.writing() as session:
        _keep(session, version)
        row = session.get(DesiredVersionRow, ("flights", version)) or DesiredVersionRow(
            model_id="flights", version=version, wanted_at=datetime.now(UTC)
        )
        row.attempt, row.pinned = attempt, pinned
        session.add(row)
        _raise(session)


def route(database: Database, **weights: float) -> int:
    """Replace the routes; `v1=0.9`. Returns their revision."""
    with database.writing() as session:
        for each in weights:
            _keep(session, each.removeprefix("v"))
        routing = session.get(RoutingRow, "flights") or RoutingRow(
            model_id="flights", revision=0, updated_at=datetime.now(UTC)
        )
        routing.revision += 1
        session.add(routing)
        for row in session.exec(select(RouteRow)):
            session.delete(row)
        session.flush()
        for name, weight in weights.items():
            session.add(RouteRow(model_id="flights", version=name.removeprefix("v"), weight=weight))
        _raise(session)
        return routing.revision


def _keep(session: Session, version: str) -> None:
    row = kept_version("flights", version)
    if session.get(type(row), ("flights", version)) is None:
        session.add(row)
        session.flush()


def _raise(session: Session) -> None:
    session.flush()
    session.connection().execute(update(RouteGenerationRow).values(value=RouteGenerationRow.value + 1))


def said(database: Database, version: str) -> ReplicaVersionRow | None:
    """What the replica has reported of a version."""
    with database.reading() as session:
        return session.get(ReplicaVersionRow, (REPLICA, "flights", version))


def is_said(database: Database, version: str, state: str, attempt: int = 1) -> Callable[[], ReplicaVersionRow | None]:
    def condition() -> ReplicaVersionRow | None:
        row = said(database, version)
        return row if row and (row.state, row.attempt) == (state, attempt) else None

    return condition


def replica(database: Database) -> ReplicaRow | None:
    """How the replica presents itself."""
    with database.reading() as session:
        return session.get(ReplicaRow, REPLICA)


def revision_applied(database: Database) -> int:
    row = replica(database)
    return row.revisions.get("flights", 0) if row else 0


def age(database: Database) -> float:
    """Seconds since the last heartbeat, by the database's clock."""
    with database.reading() as session:
        row = session.get(ReplicaRow, REPLICA)
        return (database_now_ms(session) - row.heartbeat_ms) / 1000 if row else 1e9


@pytest.fixture
def house(tmp_path: Path, database_url: str) -> House:
    return House(tmp_path, database_url)


def test_a_wanted_version_is_proven_by_the_spare_then_loaded_by_all(house: House, database: Database) -> None:
    """A candidate that crashes would take every worker along; or a promotion would wait for ever."""

    async def scenario() -> None:
        others_told_of: list[list[str]] = []
        for worker in house.workers[:SPARE]:
            worker.script = lambda order, worker=worker: others_told_of.append(house.proven) or worker.load(order)  # type: ignore[func-returns-value, misc]
        async with house.open(), house.agent():
            want(database, "1", attempt=4)
            row = await until(is_said(database, "1", "ready", 4), "the version ready")
            assert [each["worker"] for each in row.facts["workers"]] == [0, 1, 2]
            assert [each["load_seconds"] for each in row.facts["workers"]] == pytest.approx([0.1, 0.2, 0.3])
            assert (row.facts["engine"], row.facts["digest"]) == ("sklearn", DIGEST)
            assert [worker.loads() for worker in house.workers] == [[("flights", "1")]] * 3
            assert others_told_of == [["1"], ["1"]]  # a worker that restarts now comes back with it
            order = house.spare.told[0]
            assert {**order, "op": "load"} == {
                "op": "load", "model_id": "flights", "version": "1", "digest": DIGEST,
                "batch_size": 64, "timeout": 30, "warmup_requests": 5, "compiled": True,
            }  # fmt: skip
            assert house.https[0].tables[-1]["models"]["flights"]["versions"]["1"]["slot"] == 0

    play(scenario())


def test_a_version_that_cannot_be_loaded_is_reported_and_stays_in_the_spare(house: House, database: Database) -> None:
    """A person would not learn why a promotion is refused, or a broken version would be tried over and over."""

    async def scenario() -> None:
        house.spare.script = lambda _: {"ok": False, "reason": "the pickle is damaged"}
        async with house.open(), house.agent():
            want(database, "1")
            row = await until(is_said(database, "1", "failed"), "the failure reported")
            assert row.reason == "the pickle is damaged"
            want(database, "2")  # something else happens; the failed one is left alone
            await until(is_said(database, "2", "failed"), "the other one refused")
            assert house.spare.loads() == [("flights", "1"), ("flights", "2")]
            assert house.proven == []
            house.spare.script = house.spare.load
            want(database, "1", attempt=2)
            await until(is_said(database, "1", "ready", 2), "the new attempt ready")
            assert all(("flights", "2") not in worker.loads() for worker in house.workers[:SPARE])

    play(scenario())


def test_a_version_that_ends_the_spare_twice_has_failed(house: House, database: Database) -> None:
    """It would kill the spare for ever; or one kill by chance would refuse a good version."""

    async def scenario() -> None:
        deaths = 0

        def die(order: dict[str, Any]) -> dict[str, Any] | None:
            nonlocal deaths
            deaths += 1
            return None if order["version"] == "1" or deaths == 1 else house.spare.load(order)

        house.spare.script = die
        async with house.open(), house.agent():
            want(database, "2")
            await until(is_said(database, "2", "ready"), "the unlucky one ready in spite of one death")
            want(database, "1")
            row = await until(is_said(database, "1", "failed"), "the deadly one refused")
            assert row.reason == "the worker process ended while it was loading"
            assert house.spare.loads().count(("flights", "1")) == 2
            assert all(("flights", "1") not in worker.loads() for worker in house.workers[:SPARE])
            await until(lambda: ("flights", "2") in house.spare.holds, "the spare complete again")

    play(scenario())


def test_a_version_that_hangs_the_spare_has_failed_at_once(house: House, database: Database) -> None:
    """It would hold up every load behind it twice, or reach the workers that serve."""

    async def scenario() -> None:
        reason = "loading it took longer than 120 s"

        def hang(order: dict[str, Any]) -> dict[str, Any] | None:
            if order["version"] == "1":
                return {"ok": False, "reason": reason, "ended": True}
            return house.spare.load(order)

        house.spare.script = hang
        async with house.open(), house.agent():
            want(database, "1")
            want(database, "2")
            row = await until(is_said(database, "1", "failed"), "the hanging one refused")
            assert row.reason == reason
            await until(is_said(database, "2", "ready"), "the other one ready")
            assert house.spare.loads().count(("flights", "1")) == 1
            assert all(("flights", "1") not in worker.loads() for worker in house.workers[:SPARE])

    play(scenario())


def test_a_revision_counts_once_every_http_process_has_applied_it(tmp_path: Path, database: Database) -> None:
    """A bake would begin while one process still sends its requests to the old version."""
    house = House(tmp_path, _url(database), api_processes=2)

    async def scenario() -> None:
        async with house.open(), house.agent():
            slow = house.https[1]
            first = route(database, v1=1.0)
            await until(lambda: revision_applied(database) == first, "the first revision applied")
            slow.confirms = False
            second = route(database, v1=0.5, v2=0.5)
            await until(lambda: slow.routes("flights") == {"1": 0.5, "2": 0.5}, "the new table there")
            before = replica(database)
            assert before is not None
            await until(lambda: (replica(database) or before).heartbeat_ms > before.heartbeat_ms, "another heartbeat")
            assert revision_applied(database) == first
            slow.confirm()
            await until(lambda: revision_applied(database) == second, "the second revision applied")
            row = replica(database)
            assert row is not None
            with database.reading() as session:
                assert row.generation == read_generation(session)
            assert [(each["id"], each["spare"]) for each in row.workers] == [(0, False), (1, False), (2, True)]
            assert all(each["pid"] == os.getpid() and each["rss_mb"] > 1 for each in row.workers)

    play(scenario())


def test_a_config_reaches_workers_and_table_and_a_bad_one_harms_no_other_model(
    house: House, database: Database
) -> None:
    """A setting would wait for a restart; or one unreadable row would stop the routes of every model."""

    async def scenario() -> None:
        async with house.open(), house.agent():
            route(database, v1=1.0)
            await until(is_said(database, "1", "ready"), "the version ready")
            with database.writing() as session:
                now = datetime.now(UTC)
                given = {"batch_size": 7, "warmup_requests": 2}
                session.add(ServingConfigRow(model_id="flights", given=given, updated_at=now, updated_by="ada"))
                session.add(
                    ServingConfigRow(model_id="delays", given={"bath_size": 7}, updated_at=now, updated_by="bob")
                )
                _raise(session)
            told = {"op": "configure", "model_id": "flights", "batch_size": 7, "timeout": 30}
            await until(lambda: all(told in worker.told for worker in house.workers) or None, "the workers told")
            config = house.https[0].tables[-1]["models"]["flights"]["config"]
            assert (config["batch_size"], config["model_version"]) == (7, "1")
            assert config["model_path"].endswith(f"/artifacts/sha256/{DIGEST}/content")
            file = house.options.replica_folder / "versions.json"
            await until(lambda: json.loads(file.read_bytes())["versions"][0]["batch_size"] == 7, "the list rewritten")

    play(scenario())


def test_without_the_database_the_last_table_stays_and_afterwards_it_heals(house: House, database: Database) -> None:
    """A database that is away for a moment would take every model with it."""

    async def scenario() -> None:
        async with house.open(), house.agent():
            route(database, v1=1.0)
            await until(is_said(database, "1", "ready"), "the version ready")
            with _away(database):
                late = FakeHttp()
                await late.connect(house.options.agent_address)
                await until(lambda: late.routes("flights") == {"1": 1.0}, "the table, without a database")
                await late.close()
                await house.workers[0].end()  # and comes back without the version
                await house.workers[0].start()
                await until(lambda: ("flights", "1") in house.workers[0].holds, "the lost version loaded again")
                assert not [order for worker in house.workers for order in worker.told if order["op"] == "unload"]
                assert house.https[0].routes("flights") == {"1": 1.0}
            revision = route(database, v1=0.5, v2=0.5)
            await until(lambda: revision_applied(database) == revision, "the new routes, once it is back")

    play(scenario())


def test_a_start_without_database_serves_the_snapshot(tmp_path: Path, house: House, database: Database) -> None:
    """A restart during an outage of the database would end all predictions."""

    async def scenario() -> None:
        async with house.open(), house.agent():
            want(database, "2")
            route(database, v1=1.0)
            await until(is_said(database, "1", "ready"), "the routed version ready")
            await until(is_said(database, "2", "ready"), "the wanted version ready")
        blind = House(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing")
        blind.workers[0].holds = {("flights", "1"): held("flights", "1"), ("flights", "9"): held("flights", "9")}
        before = house.https[0].tables[-1]
        async with blind.open(), blind.agent():
            await until(lambda: blind.https[0].tables, "a table at once")
            assert blind.https[0].tables[0] == {**before, "certain": False}
            await until(lambda: all(("flights", "1") in each.holds for each in blind.workers) or None, "held by all")
            assert ("flights", "1") not in blind.workers[0].loads()
            assert not [order for each in blind.workers for order in each.told if order["op"] == "unload"]
            assert set(blind.proven) == {"1", "2"}

    play(scenario())


def test_what_is_not_known_is_not_made_known(tmp_path: Path) -> None:
    """A new replica would say 404 to everybody until its database answers, and one that knew better would forget."""
    blind = House(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing")

    async def scenario() -> None:
        async with blind.open(), blind.agent():
            await until(lambda: all(each._peers for each in blind.workers) or None, "the workers led")
            await asyncio.sleep(0.3)  # several rounds of what would publish it
            assert blind.https[0].tables == []
            assert not (blind.options.replica_folder / "table.json").exists()

    play(scenario())


def test_a_damaged_snapshot_is_as_none(house: House, database: Database) -> None:
    """A file cut off by a full disk would keep the data plane from starting at all."""
    house.options.replica_folder.mkdir()
    (house.options.replica_folder / "table.json").write_text('{"generation": 3, "models": {"fli')
    (house.options.replica_folder / "versions.json").write_text("[]")

    async def scenario() -> None:
        async with house.open(), house.agent():
            route(database, v1=1.0)
            await until(lambda: house.https[0].routes("flights") == {"1": 1.0}, "the routes of the database")
            file = house.options.replica_folder / "table.json"
            await until(lambda: file.read_bytes().endswith(b"}"), "the file whole again")

    play(scenario())


def test_memory_is_kept_for_what_is_routed(tmp_path: Path, database: Database) -> None:
    """Candidates would fill the memory until the kernel kills the worker that serves."""
    house = House(tmp_path, _url(database), memory_budget_mb=1)  # these tests themselves take more

    async def scenario() -> None:
        async with house.open(), house.agent():
            route(database, v1=1.0)
            want(database, "2", pinned=True)
            want(database, "3")
            row = await until(is_said(database, "3", "failed"), "the candidate refused")
            assert "MEMORY_BUDGET" in (row.reason or "")
            await until(is_said(database, "1", "ready"), "the routed version ready")
            await until(is_said(database, "2", "ready"), "the pinned version ready")
            await until(lambda: ("flights", "3") not in house.spare.holds, "the candidate unloaded")
            assert all(("flights", "3") not in worker.loads() for worker in house.workers[:SPARE])

    play(scenario())


def test_what_a_former_life_reported_and_is_not_wanted_any_more_is_forgotten(house: House, database: Database) -> None:
    """The control plane would believe that a version is there which is not."""
    with database.writing() as session:
        _keep(session, "1")
        for name in (REPLICA, "another:8000"):
            row = ReplicaVersionRow(
                replica=name,
                model_id="flights",
                version="1",
                state="ready",
                attempt=1,
                facts={},
                changed_at=datetime.now(UTC),
            )
            session.add(row)

    async def scenario() -> None:
        async with house.open(), house.agent():
            await until(lambda: said(database, "1") is None, "the row gone")
            with database.reading() as session:
                assert session.get(ReplicaVersionRow, ("another:8000", "flights", "1"))

    play(scenario())


def test_desired_state_is_all_of_one_generation(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision would be confirmed whose routes were never applied."""
    route(database, v1=1.0)
    read = replicas._routes

    def read_while_somebody_writes(*given: Any) -> Any:
        monkeypatch.setattr(replicas, "_routes", read)
        route(database, v2=1.0)
        return read(*given)

    monkeypatch.setattr(replicas, "_routes", read_while_somebody_writes)
    with database.reading() as session:
        desired = replicas.read_desired(session)
    (only,) = desired.models["flights"].routes
    assert (desired.generation, desired.models["flights"].revision, only.version) in {(1, 1, "1"), (2, 2, "2")}
    assert not desired.problems


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_does_not_answer_is_given_up_and_asked_anew(
    monkeypatch: pytest.MonkeyPatch, house: House, database: Database, postgresql: str
) -> None:
    """One connection that hangs would end all heartbeats, and with them the replica, until a person comes."""
    monkeypatch.setattr("serving.agent.database._GRACE", 0.3)

    async def scenario() -> None:
        async with house.open(), house.agent():
            route(database, v1=1.0)
            await until(is_said(database, "1", "ready"), "the version ready")
            database.close()
            with _hanging(postgresql, database):
                late = FakeHttp()
                await late.connect(house.options.agent_address)
                await until(lambda: late.routes("flights") == {"1": 1.0}, "the table in spite of it")
                await late.close()
                await until(lambda: age(database) > 1.3 or None, "heartbeats missed")
                await until(lambda: age(database) < 1.0 or None, "heartbeats again")

    play(scenario())


def test_trouble_with_the_database_is_said_once_and_its_end_too(tmp_path: Path, database: Database) -> None:
    """The log would fill with four lines a second, or say nothing at all."""

    async def scenario() -> None:
        link = DatabaseLink(_url(database), 1.0)
        with capture_logs() as lines:
            assert await link.read(read_generation) == 0
            with _away(database):
                for _ in range(3):
                    assert await link.read(read_generation) is None
            for _ in range(3):
                assert await link.read(read_generation) == 0
        assert [each["event"] for each in lines] == [
            "the database cannot be used, serving goes on with what is known",
            "the database works again",
        ]
        link.close()

    play(scenario())


@contextmanager
def _started(options: AgentOptions) -> Iterator[multiprocessing.process.BaseProcess]:
    process = multiprocessing.get_context("spawn").Process(target=run_agent, args=(options,))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_the_process_beats_and_ends_by_sigterm_as_gone(house: House, database: Database) -> None:
    """Changes would wait for a replica that was stopped on purpose, until its last heartbeat has grown old."""

    async def scenario() -> None:
        async with house.open():
            with _started(house.options) as process:
                await until(lambda: age(database) < 1.0 or None, "a heartbeat")
                first = replica(database)
                await until(lambda: (replica(database) or first).heartbeat_ms != first.heartbeat_ms, "another")  # type: ignore[union-attr]
                process.terminate()
                await until(lambda: process.exitcode is not None, "its end")
                assert process.exitcode == 0
            assert (found := replica(database)) is not None
            assert found.heartbeat_ms == 0

    play(scenario())


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_killed_agent_goes_on_where_it_was(house: House, database: Database) -> None:
    """Counters would jump from one version to another, and every version be loaded anew."""

    async def scenario() -> None:
        async with house.open():
            with _started(house.options) as process:
                await house.connect()
                for version in ("2", "1"):
                    want(database, version, attempt=3)
                    await until(is_said(database, version, "ready", 3), "the version ready")
                before = said(database, "1")
                table = house.https[0].tables[-1]
                assert [table["models"]["flights"]["versions"][each]["slot"] for each in ("2", "1")] == [0, 1]
                process.kill()
                await until(lambda: process.exitcode is not None, "its end")
            await house.https[0].close()
            beaten = replica(database)
            assert beaten is not None
            with _started(house.options):
                await until(lambda: (replica(database) or beaten).started_at > beaten.started_at, "a heartbeat")
                await house.https[0].connect(house.options.agent_address)
                tables = house.https[0].tables
                await until(lambda: tables[-1] is not table and tables[-1]["certain"], "a table")
                assert tables[-1] == table
                assert [len(worker.loads()) for worker in house.workers] == [2, 2, 2]
                after = said(database, "1")
                assert before is not None
                assert after is not None
                assert (after.state, after.changed_at) == (before.state, before.changed_at)

    play(scenario())


_PARENT = """
import multiprocessing, pickle, sys, time
from serving.agent import run_agent
if __name__ == "__main__":
    options = pickle.loads(bytes.fromhex(sys.argv[1]))
    agent = multiprocessing.get_context("forkserver").Process(target=run_agent, args=(options,))
    agent.start()
    print(agent.pid, flush=True)
    time.sleep(600)
"""


def test_the_agent_ends_with_its_parent(tmp_path: Path) -> None:
    """Each crash of a data plane would leave a process behind that tells the database of a replica long gone."""
    options = House(tmp_path, f"sqlite:///{tmp_path / 'none.db'}").options
    command = [PYTHON, "-c", _PARENT, pickle.dumps(options).hex()]
    with (
        tempfile.TemporaryDirectory() as short,  # a parent that is killed leaves its sockets behind
        subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**clean_environment(), "TMPDIR": short}, text=True
        ) as parent,
    ):
        assert parent.stdout is not None
        agent = psutil.Process(int(parent.stdout.readline()))
        wait_until(Path(options.agent_address).exists, "the agent listens", GUARD)
        parent.kill()
        wait_until(lambda: not agent.is_running(), "the agent gone", GUARD)


def _url(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@contextmanager
def _away(database: Database) -> Iterator[None]:
    """The database cannot be used, and afterwards can again."""
    if database.file is not None:
        with _renamed(database.file):
            yield
        return
    name = database.url.database
    admin = database.url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    database.close()  # its connections were cut too


@contextmanager
def _renamed(file: Path) -> Iterator[None]:
    names = [Path(f"{file}{suffix}") for suffix in ("", "-wal", "-shm")]
    there = [each for each in names if each.exists()]
    for each in there:
        each.rename(f"{each}.away")
    try:
        yield
    finally:
        for each in there:
            Path(f"{each}.away").rename(each)


@contextmanager
def _hanging(admin: str, database: Database) -> Iterator[None]:
    """Every connection to the database that is open now does not answer any more."""
    stopped: list[int] = []
    query = "SELECT pid, state FROM pg_stat_activity WHERE datname = %s"
    with psycopg.connect(admin, autocommit=True) as connection:
        while not stopped:
            for pid, _ in connection.execute(query, [database.url.database]).fetchall():
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            if any(state != "idle" for _, state in connection.execute(query, [database.url.database])):
                _continue(stopped)  # in the middle of something it may hold up all others: once more
        try:
            yield
        finally:
            _continue(stopped)


def _continue(stopped: list[int]) -> None:
    while stopped:
        os.kill(stopped.pop(), signal.SIGCONT)
