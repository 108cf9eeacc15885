"""A control plane with everything real but the registry and the data plane: those are played here."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from control_plane.app import create_app
from control_plane.registry import RegistryVersion, VersionFacts
from control_plane.replicas import Patience
from control_plane.rollback import Pace
from control_plane.services import Services, wire
from control_plane.settings import Settings
from serving.artifacts import ArtifactStore
from serving.store import Database, open_database
from serving.store.clock import database_now_ms
from serving.store.tables import DesiredVersionRow, ReplicaRow, ReplicaVersionRow, RouteGenerationRow, RoutingRow
from tests.fakes import FakeRegistry
from tests.processes import wait_until

HERE = "http://127.0.0.1:8080"
QUICK = Pace(poll=0.02, lease=2.0, patience=Patience(replica=1.0, ready=2.0, applied=1.0))
COLUMNS = [
    {"name": "temp", "type": "double", "required": True},
    {"name": "carrier", "type": "string", "required": True},
    {"name": "wind", "type": "double", "required": False},
]


def signature(*columns: dict[str, Any]) -> dict[str, Any]:
    """What MLflow keeps of a version's inputs."""
    return {"inputs": list(columns), "outputs": None, "params": None}


# Where the database makes no difference, one is enough.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Registry(FakeRegistry):
    """A registry of versions with metrics and signatures; it hangs on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.released.set()
        self._hangs_on: str | None = None
        self._facts: dict[str, VersionFacts] = {}

    def add(
        self,
        model_id: str = "flights",
        *,
        metrics: dict[str, float | None] | None = None,
        inputs: dict[str, Any] | None = None,
        example: Any = None,
    ) -> str:
        """Register a version with these facts."""
        files = {"MLmodel": f"flavors: {{}} # {len(self._facts)}\n".encode()}
        if example is not None:
            files["input_example.json"] = json.dumps(example).encode()
        version = self.register(model_id, files)
        identity = self._versions[model_id][version].identity
        self._facts[identity] = VersionFacts(metrics or {}, inputs or signature(*COLUMNS), 10, "ada", lost=False)
        return version

    def facts(self, version: RegistryVersion) -> VersionFacts:
        self._answer()
        return self._facts.get(version.identity) or super().facts(version)

    @contextmanager
    def hanging(self, model_id: str | None = None) -> Iterator[None]:
        """As a server that takes connections and says nothing, of one model or at all."""
        self._hangs_on = model_id
        self.released.clear()
        try:
            yield
        finally:
            self.released.set()

    def versions(self, model_id: str) -> list[RegistryVersion] | None:
        if self._hangs_on == model_id:
            self.released.wait(30)
        return super().versions(model_id)

    def _answer(self) -> None:
        if self._hangs_on is None:
            self.released.wait(30)
        super()._answer()


def again(database: Database) -> Database:
    """The same database over connections of its own, as another process has it: closing one leaves the other alone."""
    return open_database(database.url.render_as_string(hide_password=False), timeout=10)


def make_services(
    database: Database, registry: FakeRegistry, folder: Path, *, pace: Pace = QUICK, **settings: Any
) -> Services:
    """The services on this database, with connections of their own."""
    given = Settings(data_folder=folder, projection_interval=0.1, **settings)
    return wire(given, again(database), registry, ArtifactStore(folder / "artifacts"), pace)


@contextmanager
def running(services: Services) -> Iterator[TestClient]:
    """The whole application, duties included."""
    with TestClient(create_app(services), base_url=HERE, raise_server_exceptions=False) as client:
        yield client


class PlayedReplica:
    """Rows as a data plane writes them: it heartbeats, loads what is wanted and applies routes, unless told not to."""

    def __init__(self, database: Database, name: str = "127.0.0.1:8000", *, loads: bool = True) -> None:
        self.name = name
        self.refuses: dict[str, str] = {}  # version -> why
        self.loads = loads
        self.applies = True
        self.attempts: list[tuple[str, int]] = []
        self._database = again(database)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def __enter__(self) -> "PlayedReplica":
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """No heartbeat any more; its rows stay."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)
        self._database.close()

    def beat(self) -> None:
        """One look at what is desired, and one report."""
        with self._database.writing() as session:
            row = session.get(ReplicaRow, self.name) or ReplicaRow(
                replica=self.name,
                url=f"http://{self.name}",
                started_at=datetime.now(UTC),
                heartbeat_ms=0,
                generation=0,
                revisions={},
                workers=[{"id": 0, "pid": 1, "spare": False, "rss_mb": 100.0}],
            )
            row.heartbeat_ms = database_now_ms(session)
            if self.applies:
                row.generation = session.exec(select(RouteGenerationRow.value)).one()
                row.revisions = {each.model_id: each.revision for each in session.exec(select(RoutingRow))}
            session.add(row)
            for wanted in session.exec(select(DesiredVersionRow)):
                self._report(session, wanted)

    def age(self, seconds: float) -> None:
        """As if the last heartbeat of a dead one was so long ago."""
        with self._database.writing() as session:
            row = session.get_one(ReplicaRow, self.name)
            row.heartbeat_ms = database_now_ms(session) - int(seconds * 1000)
            session.add(row)
        self._database.close()

    def _report(self, session: Any, wanted: DesiredVersionRow) -> None:
        key = (self.name, wanted.model_id, wanted.version)
        row = session.get(ReplicaVersionRow, key)
        if row is not None and row.attempt == wanted.attempt and (row.state != "loading" or not self.loads):
            return
        row = row or ReplicaVersionRow(
            replica=self.name, model_id=wanted.model_id, version=wanted.version, state="loading", attempt=0,
            facts={}, changed_at=datetime.now(UTC),
        )  # fmt: skip
        if row.attempt != wanted.attempt:
            self.attempts.append((wanted.version, wanted.attempt))
        reason = self.refuses.get(wanted.version)
        row.attempt, row.reason = wanted.attempt, reason
        row.state = "failed" if reason else "ready" if self.loads else "loading"
        row.facts = {"kind": "classifier", "engine": "sklearn", "load_seconds": 0.1, "warmup_seconds": [0.01]}
        row.facts["compilation"] = {"used": True, "reason": "answered 200 rows", "rows": 200}
        session.add(row)

    def _live(self) -> None:
        while not self._stop.wait(0.04):
            self.beat()


def ended(client: TestClient, change: dict[str, Any], seconds: float = 20) -> dict[str, Any]:
    """The change as it ended."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/ml/changes/{change['id']}").json()
        return found if found["ended_at"] else {}

    return wait_until(look, f"change {change['id']} to end", seconds)


def promote(client: TestClient, target: str, model_id: str = "flights", **more: Any) -> httpx.Response:
    """Ask for it."""
    answer: httpx.Response = client.post(
        f"/ml/models/{model_id}/promote", json={"target": target, "reason": "test", **more}
    )
    return answer


def promoted(client: TestClient, target: str, model_id: str = "flights") -> dict[str, Any]:
    """Ask for it and wait until it serves."""
    answer = promote(client, target, model_id)
    assert answer.status_code == 202, answer.text
    change = ended(client, answer.json())
    assert change["state"] == "succeeded", change
    return change


class PlayedDataPlane:
    """A real HTTP server that notes what it is asked and answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []  # method, path, headers, body
        self.status = 200
        self.body = b'{"ok":true}'
        self.headers: dict[str, str] = {"Content-Type": "application/json"}
        played = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                played.asked.append((self.command, self.path, headers, body))
                self.send_response(played.status)
                for name, value in played.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(played.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(played.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 (what the base class calls them)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def probes(self) -> list[tuple[str, Any]]:
        """(path, body) of the inferences it was asked for."""
        return [(path, json.loads(body)) for _, path, _, body in self.asked if path.endswith("/infer")]

    def __enter__(self) -> "PlayedDataPlane":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
