"""The warm-up job as a person starts it in Prefect: the form offers the model, and the run shows what was measured."""

import json
from typing import Any

import httpx
import pytest

from serving.store import open_database
from serving.store.tables import DesiredVersionRow, ReplicaVersionRow
from tests.e2e.conftest import Stack
from tests.e2e.test_stack import create_run
from tests.mlflow_person import Person
from tests.processes import wait_until

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def deployment(stack: Stack) -> dict[str, Any]:
    """What Prefect knows of the job, its form included."""
    answer = httpx.get(f"{stack.prefect}/api/deployments/name/warm-up/warm-up", timeout=30)
    found: dict[str, Any] = answer.json()
    return found


def offered(stack: Stack) -> list[str]:
    """The models that the form lets one choose from."""
    schema = deployment(stack).get("parameter_openapi_schema", {})
    models: list[str] = schema["definitions"]["WarmUpRequest"]["properties"]["model_id"].get("enum", [])
    return models


def run(stack: Stack, **request: Any) -> dict[str, Any]:
    """A run of the job, as it ended."""
    started = create_run(stack.prefect, deployment(stack)["id"], {"parameters": {"request": request}})
    assert started.status_code == 201, started.text

    def ended() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{stack.prefect}/api/flow_runs/{started.json()['id']}", timeout=30).json()
        return found if found.get("state_type") in ENDED else {}

    return wait_until(ended, "the warm-up run to end", 300)


def table(stack: Stack, flow_run: str) -> list[dict[str, str]]:
    """The timings that one run has put on record."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": ["warm-up"]}}}
    (artifact,) = httpx.post(f"{stack.prefect}/api/artifacts/filter", json=wanted, timeout=30).json()
    rows: list[dict[str, str]] = json.loads(artifact["data"])
    return rows


def reported(stack: Stack, replica: str, model_id: str, version: str) -> tuple[ReplicaVersionRow, DesiredVersionRow]:
    """What a replica says of a version, and what it was asked for, in the house's own database."""
    database = open_database(f"sqlite:///{stack.home / 'switchyard.db'}", timeout=30)
    try:
        with database.reading() as session:
            held = session.get_one(ReplicaVersionRow, (replica, model_id, version))
            return held, session.get_one(DesiredVersionRow, (model_id, version))
    finally:
        database.close()


@pytest.fixture(scope="module")
def person(stack: Stack) -> Person:
    """Somebody who has just registered a model."""
    backend = f"sqlite:///{stack.home / 'mlflow' / 'mlflow.db'}"
    person = Person(stack.mlflow, backend, stack.home / "mlflow" / "artifacts")
    person.client.set_registered_model_alias(person.model_id, "champion", person.register())
    return person


def test_a_new_model_is_offered_and_warmed_on_every_worker(stack: Stack, person: Person) -> None:
    """One would have to type the name of a model, and would not see what its first requests cost."""
    wait_until(lambda: person.model_id in offered(stack), "the form to offer the new model", 60)
    ended = run(stack, model_id=person.model_id)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    rows = table(stack, ended["id"])
    assert len(rows) > 1
    assert [each["worker"].endswith("(spare)") for each in rows] == [False] * (len(rows) - 1) + [True]
    for each in rows:
        assert each["state"] == "ready"
        figures = [float(each[name]) for name in ("load s", "first ms", "median ms", "last ms")]
        assert all(figure > 0 for figure in figures), each
        assert float(each["memory MB"]) >= 0
    held, wanted = reported(stack, rows[0]["replica"], person.model_id, "1")
    assert (held.state, held.attempt) == ("ready", wanted.attempt)
    assert [each["spare"] for each in held.facts["workers"]] == [False] * (len(rows) - 1) + [True]


def test_a_model_that_was_mistyped_is_refused_before_anything_starts(stack: Stack, person: Person) -> None:
    """A run would be started, only to say what the form could have said."""
    wait_until(lambda: person.model_id in offered(stack), "the form to offer the new model", 60)
    wrong: dict[str, object] = {"parameters": {"request": {"model_id": f"{person.model_id}x"}}}
    answer = create_run(stack.prefect, deployment(stack)["id"], wrong)
    assert answer.status_code == 409
    assert person.model_id in answer.text


def test_a_version_that_is_not_there_shows_red_with_those_that_are(stack: Stack, person: Person) -> None:
    """The version is free text: the run must say what would have been right."""
    wait_until(lambda: person.model_id in offered(stack), "the form to offer the new model", 60)
    ended = run(stack, model_id=person.model_id, target="7")
    assert ended["state_type"] == "FAILED"
    assert "Known versions: 1" in ended["state"]["message"]
