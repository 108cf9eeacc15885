"""Status: how a model stands, from what replicas say, whatever the registry does."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from control_plane.storage.leases import take_lease
from control_plane.storage.routes import lease_name, write_routes
from serving.contracts import ModelServingConfig
from serving.routing import Route
from serving.store import Database
from serving.store.tables import ReplicaVersionRow
from tests.processes import wait_until
from tests.services.serving_world import (
    PlayedReplica,
    Registry,
    ended,
    make_services,
    on_sqlite,
    promote,
    promoted,
    running,
)

STATUS = "/ml/models/flights/status"


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add()
    registry.add()
    return registry


@pytest.fixture
def client(database: Database, registry: Registry, tmp_path: Path) -> Iterator[TestClient]:
    with running(make_services(database, registry, tmp_path)) as client:
        yield client


def test_a_served_model_tells_everything_about_itself(client: TestClient, database: Database) -> None:
    """The page of a model, and what the command line shows, are made of this alone."""
    with PlayedReplica(database) as replica:
        first = promoted(client, "1")
        second = promoted(client, "2")
        status = wait_until(
            lambda: (found := client.get(STATUS).json())["status"] == "ready" and found, "it to be ready", 10
        )
        assert first["source"] is None
        assert {
            "model_id", "status", "version", "routes", "replicas", "change", "last_known_good", "config", "health",
        } <= status.keys()  # fmt: skip
        assert (status["version"], status["routes"]) == ("2", [{"version": "2", "weight": 1.0}])
        assert status["change"] is None
        assert status["last_known_good"] == {"version": "1", "change_id": second["id"], "is_warm": True}
        assert (
            status["config"]
            == ModelServingConfig(model_version="2", model_path=status["config"]["model_path"]).model_dump()
        )
        (shown,) = status["replicas"]
        assert (shown["replica"], shown["live"], shown["route_revision"]) == (replica.name, True, 2)
        assert shown["age"] < 5
        assert shown["heartbeat"].endswith("Z")
        assert [worker["pid"] for worker in shown["workers"]] == [1]
        assert {version: held["state"] for version, held in shown["versions"].items()} == {"1": "ready", "2": "ready"}
        held = shown["versions"]["2"]
        assert (held["engine"], held["kind"], held["load_seconds"]) == ("sklearn", "classifier", 0.1)
        assert held["compilation"] == {"used": True, "reason": "answered 200 rows", "rows": 200}
        listed = client.get("/ml/models").json()["items"][0]
        assert (listed["status"], listed["version"]) == ("ready", "2")


def test_a_dead_replica_is_shown_with_its_age_and_does_not_count(client: TestClient, database: Database) -> None:
    """Which one died, and when, is the first question of whoever is called."""
    with PlayedReplica(database) as replica, PlayedReplica(database, "127.0.0.1:8001") as other:
        promoted(client, "1")
        other.die()
        other.age(60)
        status = client.get(STATUS).json()
        assert [(each["replica"], each["live"]) for each in status["replicas"]] == [
            (replica.name, True), (other.name, False),
        ]  # fmt: skip
        assert status["replicas"][1]["age"] >= 60
        assert status["status"] == "ready"
        replica.die()
        replica.age(6)
        assert client.get(STATUS).json()["status"] == "down"
        assert client.get("/ml/models").json()["items"][0]["status"] == "down"
        other.age(3600)
        assert [each["replica"] for each in client.get(STATUS).json()["replicas"]] == [replica.name]


@on_sqlite
def test_a_routed_model_that_loads_is_loading(client: TestClient, database: Database) -> None:
    """After a restart of the data plane; an alarm would be wrong, and so would be ready."""
    with PlayedReplica(database) as replica:
        promoted(client, "1")
    replica.age(6)
    with PlayedReplica(database, "127.0.0.1:8001", loads=False) as replica:

        def status() -> str:
            return str(client.get(STATUS).json()["status"])

        wait_until(lambda: status() == "loading" or None, "it to be loading", 10)
        replica.loads = True
        wait_until(lambda: status() == "ready" or None, "it to be ready", 10)
        replica.applies = False
        with database.writing() as session:
            lease = take_lease(session, lease_name("flights"), "test", 5)
            write_routes(session, lease, "flights", [Route("1", 1.0)], reason="test", aliases={})
        assert status() == "degraded"


@on_sqlite
@pytest.mark.parametrize(
    ("state", "facts", "status"),
    [("failed", {"held": True}, "ready"), ("loading", {"held": True}, "ready"), ("evicted", {}, "down")],
)
def test_a_version_is_shown_with_what_came_of_it_and_whether_it_answers(
    client: TestClient, database: Database, state: str, facts: dict[str, bool], status: str
) -> None:
    """A model that is warmed again looked down while it answered; one that was unloaded gave no reason."""
    with PlayedReplica(database) as replica:
        promoted(client, "1")
    with database.writing() as session:
        row = session.get_one(ReplicaVersionRow, (replica.name, "flights", "1"))
        row.state, row.reason, row.facts = state, "as the replica said", facts
        session.add(row)
    replica.age(0)
    found = client.get(STATUS).json()
    shown = found["replicas"][0]["versions"]["1"]
    assert (found["status"], shown["state"], shown["held"]) == (status, state, "held" in facts)
    assert shown["reason"] == "as the replica said"


@on_sqlite
def test_the_change_under_way_is_told(client: TestClient, database: Database) -> None:
    """Whoever looks at a model sees that somebody is changing it."""
    with PlayedReplica(database) as replica:
        replica.loads = False
        change = promote(client, "1").json()
        status = wait_until(
            lambda: (found := client.get(STATUS).json())["change"]["state"] == "preparing" and found, "preparing", 10
        )
        assert (status["change"]["id"], status["status"]) == (change["id"], "unserved")
        replica.loads = True
        ended(client, change)


@on_sqlite
def test_a_registered_model_is_unserved_and_another_unknown(client: TestClient) -> None:
    """404 names the known ones; one that was only registered is not an error."""
    status = client.get(STATUS).json()
    assert (status["status"], status["version"], status["routes"], status["health"]) == ("unserved", None, [], None)
    answer = client.get("/ml/models/fligths/status")
    assert (answer.status_code, answer.json()["error"], answer.json()["known"]) == (404, "ModelNotFound", ["flights"])


@on_sqlite
@pytest.mark.parametrize("name", ["%00", "a%0Ab", "%7F", "x" * 501])
def test_names_that_no_model_can_have_are_422(client: TestClient, name: str) -> None:
    """PostgreSQL takes no NUL in a text: it would be a 500."""
    for path in ("status", "config", "versions"):
        assert client.get(f"/ml/models/{name}/{path}").status_code == 422


@on_sqlite
def test_status_does_not_need_the_registry(client: TestClient, database: Database, registry: Registry) -> None:
    """What serves goes on serving while MLflow hangs, and people want to see that it does."""
    with PlayedReplica(database):
        promoted(client, "1")
        with registry.hanging():
            started = time.monotonic()
            assert client.get(STATUS).json()["version"] == "1"
            assert client.get("/ml/changes").json()["items"]
            assert time.monotonic() - started < 5
