"""Probes: each served model is asked through the real path, at its own pace, and stands as it answers."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from control_plane.monitoring.health import Finding, following
from control_plane.storage.leases import take_lease
from control_plane.storage.probes import write_probe
from control_plane.storage.routes import lease_name, write_routes
from control_plane.storage.tables import HealthProbeRow
from serving.routing import Route
from serving.store import Database
from tests.processes import wait_until
from tests.services.serving_world import (
    PlayedDataPlane,
    PlayedReplica,
    Registry,
    make_services,
    on_sqlite,
    promoted,
    running,
)

STATUS = "/ml/models/flights/status"
CONFIG = "/ml/models/flights/config"
EXAMPLE = {"columns": ["temp", "carrier", "wind"], "data": [[float("nan"), "DL", 1.0], [41.0, "UA", float("nan")]]}


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add(example=EXAMPLE)
    registry.add(example=EXAMPLE)
    registry.add()
    return registry


@pytest.fixture
def data_plane() -> Iterator[PlayedDataPlane]:
    with PlayedDataPlane() as data_plane:
        yield data_plane


@pytest.fixture
def client(database: Database, registry: Registry, tmp_path: Path, data_plane: PlayedDataPlane) -> Iterator[TestClient]:
    with (
        PlayedReplica(database),
        running(make_services(database, registry, tmp_path, data_plane_port=data_plane.port)) as client,
    ):
        yield client


def health(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get(STATUS).json()["health"] or {}
    return found


def until(client: TestClient, condition: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        found = health(client)
        return found if found and condition(found) else {}

    return wait_until(look, what, 20)


def test_a_served_model_is_probed_through_its_version_and_found_well(
    client: TestClient, data_plane: PlayedDataPlane
) -> None:
    """The probe takes the way of a client's request, with a row that the model was registered with."""
    promoted(client, "1")
    found = until(client, lambda health: health["ok"], "the first probe")
    path, body = data_plane.probes()[0]
    assert path == "/v2/models/flights/versions/1/infer"
    assert body == {
        "inputs": [
            {"name": "temp", "shape": [1], "datatype": "FP64", "data": [41.0]},
            {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["UA"]},
        ]
    }
    assert (found["version"], found["down"], found["failures"], found["problem"]) == ("1", False, 0, None)
    assert found["seconds"] > 0
    assert found["checked_at"].endswith("Z")


@on_sqlite
def test_the_interval_of_the_configuration_sets_the_pace(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """health_check_interval does what its name says, at once."""
    client.put(CONFIG, json={"health_check_interval": 3600})
    promoted(client, "1")
    until(client, lambda health: health["ok"], "the first probe")
    slow = len(data_plane.probes())
    client.put(CONFIG, json={"health_check_interval": 1})
    started = time.monotonic()
    wait_until(lambda: len(data_plane.probes()) >= slow + 3, "three more probes", 20)
    assert slow == 1
    assert time.monotonic() - started > 2.0  # one at once, then one a second; not as fast as it can


@on_sqlite
def test_three_failures_make_it_down_and_two_answers_bring_it_up(
    client: TestClient, data_plane: PlayedDataPlane
) -> None:
    """Replicas that believe themselves ready while every answer is a 500 must not look healthy."""
    client.put(CONFIG, json={"health_check_interval": 1})
    promoted(client, "1")
    until(client, lambda health: health["ok"], "the first probe")
    data_plane.body = b'{"error":"model_error","detail":"Version 1 raised ValueError"}'
    data_plane.status = 500
    found = until(client, lambda health: health["down"], "three failures")
    assert found["failures"] >= 3
    assert found["problem"] == "The probe was answered 500: model_error Version 1 raised ValueError"
    assert client.get(STATUS).json()["status"] == "down"
    assert client.get("/ml/models").json()["items"][0]["status"] == "down"
    data_plane.status = 429
    until(client, lambda health: health["ok"] is None, "a probe that was turned away")
    assert health(client)["down"]
    data_plane.status = 200
    found = until(client, lambda health: not health["down"], "two answers")
    assert found["successes"] >= 2
    assert client.get(STATUS).json()["status"] == "ready"


@on_sqlite
def test_one_that_was_left_out_comes_first(database: Database, registry: Registry, tmp_path: Path) -> None:
    """Eight are asked at once: with more models than that, those that come late in the alphabet would never be."""
    services = make_services(database, registry, tmp_path)
    now = datetime.now(UTC)
    for age, model_id in enumerate(("a", "b", "c", "d")):
        registry.add(model_id, example=EXAMPLE)
        services.versions.prepare(model_id, "1")
        with database.writing() as session:
            lease = take_lease(session, lease_name(model_id), "test", 5)
            write_routes(session, lease, model_id, [Route("1", 1.0)], reason="test", aliases={})
            if model_id != "c":
                probe = following(None, Finding(model_id, "1", True, 0.1, None), now - timedelta(hours=1 + age))
                write_probe(session, probe)
    assert [each.model_id for each in services.health.due()] == ["c", "d", "b", "a"]
    services.close()


@on_sqlite
def test_what_a_model_answered_is_shown_and_not_logged(database: Database, registry: Registry, tmp_path: Path) -> None:
    """The message of a model's exception may quote the row that it was asked about."""
    services = make_services(database, registry, tmp_path)
    services.versions.prepare("flights", "1")
    with capture_logs() as logged:
        for _ in range(3):
            services.health.keep(Finding("flights", "1", False, 0.1, "could not convert 'Ada Lovelace' to float"))
    with database.reading() as session:
        assert "Lovelace" in str(session.get_one(HealthProbeRow, "flights").problem)
    assert [(each["event"], each["model_id"], each["failures"]) for each in logged] == [("probes fail", "flights", 3)]
    assert "Lovelace" not in str(logged)
    services.close()


@on_sqlite
def test_a_version_without_an_example_is_not_probed_and_says_so(
    client: TestClient, data_plane: PlayedDataPlane
) -> None:
    """Unknown is not healthy, and not ill either."""
    promoted(client, "3")
    found = until(client, lambda health: health["problem"], "the reason")
    assert (found["ok"], found["down"]) == (None, False)
    assert found["problem"] == "Not probed: no input example was logged with the version."
    assert client.get(STATUS).json()["status"] == "ready"
    assert data_plane.probes() == []


@on_sqlite
def test_a_new_version_is_probed_at_once(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """The minute after a promotion is when it matters."""
    client.put(CONFIG, json={"health_check_interval": 3600})
    promoted(client, "1")
    until(client, lambda health: health["version"] == "1", "the first probe")
    promoted(client, "2")
    until(client, lambda health: health["version"] == "2", "a probe of the new version")


@on_sqlite
def test_a_data_plane_that_is_away_is_a_failure(database: Database, registry: Registry, tmp_path: Path) -> None:
    """Nobody gets an answer, so the probe gets none."""
    with PlayedDataPlane() as gone:
        port = gone.port
    services = make_services(database, registry, tmp_path, data_plane_port=port)
    with PlayedReplica(database), running(services) as client:
        promoted(client, "1")
        found = until(client, lambda health: health["ok"] is False, "a failed probe")
        assert "does not answer" in found["problem"]


@on_sqlite
def test_of_two_control_planes_one_asks(client: TestClient, database: Database, data_plane: PlayedDataPlane) -> None:
    """Probes are load; many control planes must not multiply it."""
    promoted(client, "1")
    until(client, lambda health: health["ok"], "the first probe")
    with database.writing() as session:
        session.connection().exec_driver_sql("UPDATE lease SET expires_at_ms = 1 WHERE name = 'duty:health'")
        take_lease(session, "duty:health", "another control plane", 60)
        row = session.get_one(HealthProbeRow, "flights")
        row.checked_at = datetime.now(UTC) - timedelta(hours=1)
        session.add(row)
    asked = len(data_plane.probes())
    time.sleep(1.2)  # more than two looks of the duty; that nothing happens cannot be waited for
    assert len(data_plane.probes()) == asked
