"""Configuration of a model: set in part, validated as a whole, noticed by every replica."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from control_plane.storage.configs import read_configs
from control_plane.storage.routes import read_generation
from serving.contracts import ModelServingConfig
from serving.store import Database
from serving.store.tables import ServingConfigRow
from tests.services.serving_world import PlayedReplica, Registry, make_services, on_sqlite, promoted, running

CONFIG = "/ml/models/flights/config"


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add()
    return registry


@pytest.fixture
def client(database: Database, registry: Registry, tmp_path: Path) -> Iterator[TestClient]:
    with running(make_services(database, registry, tmp_path)) as client:
        yield client


def generation(database: Database) -> int:
    with database.reading() as session:
        return read_generation(session)


def test_fields_are_set_in_part_and_the_rest_stays(client: TestClient, database: Database) -> None:
    """Two people who set two fields must not undo each other."""
    before = generation(database)
    first = client.put(CONFIG, json={"batch_size": 32.0}, headers={"X-Requested-By": "ada"})
    assert first.status_code == 200
    body = client.put(CONFIG, json={"timeout": 7, "performance_threshold": 0.7}).json()
    expected = ModelServingConfig(batch_size=32, timeout=7, performance_threshold=0.7)
    assert (body["model_id"], body["config"]) == ("flights", expected.model_dump())
    assert set(body["effective"]) == set(expected.model_dump()) - {"model_path", "model_version"}
    assert set(body["effective"].values()) == {"now"}
    assert client.get(CONFIG).json() == body
    assert generation(database) == before + 2  # what replicas poll
    with database.reading() as session:
        row = session.get_one(ServingConfigRow, "flights")
    assert row.given == {"batch_size": 32, "timeout": 7, "performance_threshold": 0.7}
    assert row.updated_by == "api"


@on_sqlite
def test_path_and_version_are_those_of_what_serves(client: TestClient, database: Database, tmp_path: Path) -> None:
    """Where it was loaded from follows from the digest; nobody types it."""
    assert client.get(CONFIG).json()["config"]["model_version"] == ""
    with PlayedReplica(database):
        promoted(client, "1")
    config = client.get(CONFIG).json()["config"]
    assert config["model_version"] == "1"
    assert (Path(config["model_path"]) / "MLmodel").is_file()
    assert Path(config["model_path"]).is_relative_to(tmp_path / "artifacts")


@on_sqlite
@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "64"}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": None}, "batch_size"),
        ({"timeout": 1e99}, "timeout"),
        ({"performance_threshold": "NaN"}, "performance_threshold"),
        ({"client_timestamps": 1}, "client_timestamps"),
        ({"batchsize": 64}, "batchsize"),
        ({"model_version": "2"}, "model_version"),
        ({"model_path": "/etc"}, "model_path"),
        ([], "body"),
    ],
)
def test_a_wrong_value_names_the_field_and_changes_nothing(
    client: TestClient, database: Database, given: Any, path: str
) -> None:
    """Half of a change must not be in force."""
    answer = client.put(CONFIG, json=given | {"max_rows": 7} if isinstance(given, dict) else given)
    assert (answer.status_code, answer.json()["error"]) == (422, "ValidationFailed")
    assert [each["path"] for each in answer.json()["fields"]] == [path]
    assert client.get(CONFIG).json()["config"] == ModelServingConfig().model_dump()


@on_sqlite
def test_what_follows_from_something_else_says_from_what(client: TestClient) -> None:
    """The way out stands in the refusal."""
    (field,) = client.put(CONFIG, json={"model_version": "2"}).json()["fields"]
    assert "promote" in field["expected"]


@on_sqlite
def test_an_unknown_model_is_404_and_one_of_the_registry_is_known(client: TestClient, registry: Registry) -> None:
    """A threshold is set before the first promotion; a typing error makes no configuration of nothing."""
    assert client.put(CONFIG, json={"performance_threshold": 0.5}).status_code == 200
    answer = client.put("/ml/models/fligths/config", json={"batch_size": 1})
    assert (answer.status_code, answer.json()["known"]) == (404, ["flights"])
    assert client.get("/ml/models/fligths/config").status_code == 404
    registry.is_down = True
    assert client.get(CONFIG).status_code == 200  # our database knows it by now
    assert client.get("/ml/models/fligths/config").json()["error"] == "RegistryUnreachable"


@on_sqlite
def test_a_row_that_cannot_be_read_harms_no_other_model(client: TestClient, database: Database) -> None:
    """After going back to an older release, one unknown field would stop the probes of every model."""
    client.put(CONFIG, json={"timeout": 7})
    with database.writing() as session:
        row = session.get_one(ServingConfigRow, "flights")
        row.given = {"timeout": "soon", "of_tomorrow": 1}
        session.add(row)
        session.add(ServingConfigRow(**{**row.model_dump(), "model_id": "delays", "given": {"timeout": 7}}))
    with database.reading() as session, capture_logs() as logged:
        configs = read_configs(session)
    assert (configs["flights"], configs["delays"].timeout) == (ModelServingConfig(), 7)
    assert [(each["model_id"], each["problem"]) for each in logged] == [("flights", "timeout, of_tomorrow")]
