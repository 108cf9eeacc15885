"""From a version in MLflow to answers on both addresses, through everything that `switchyard up` starts."""

from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Stack
from tests.mlflow_person import Person
from tests.processes import wait_until

ROWS = {"age": [0.3, -1.2, 2.0], "balance": [1.0, 0.0, -0.5]}


@pytest.fixture(scope="module")
def person(stack: Stack) -> Person:
    """Somebody whose first version serves."""
    folder = stack.home / "mlflow"
    person = Person(stack.mlflow, f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts")
    change = promoted(stack, person.model_id, person.register())
    assert change["state"] == "succeeded", change
    return person


def promoted(stack: Stack, model_id: str, target: str) -> dict[str, Any]:
    """The change that was asked for, as it ended."""
    wish = {"target": target, "reason": "test"}
    asked = httpx.post(f"{stack.control_plane}/ml/models/{model_id}/promote", json=wish, timeout=30)
    assert asked.status_code == 202, asked.text

    def ended() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{stack.control_plane}/ml/changes/{asked.json()['id']}", timeout=30).json()
        return found if found["ended_at"] else {}

    return wait_until(ended, "the change to end", 120)


def answers(stack: Stack, model_id: str) -> list[dict[str, Any]]:
    """What each address says of the same rows."""
    found = []
    for address in (stack.data_plane, stack.control_plane):
        answer = httpx.post(f"{address}/ml/models/{model_id}/predict", json={"input_data": ROWS}, timeout=30)
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
    return found


def test_both_addresses_answer_alike(stack: Stack, person: Person) -> None:
    """One base address for the whole API is a promise; so is that both say the same."""
    direct, passed = answers(stack, person.model_id)
    assert len(direct["predictions"]) == 3
    assert (direct["predictions"], direct["model_version"]) == (passed["predictions"], "1")
    assert direct["request_id"] != passed["request_id"]


def test_a_pickle_that_does_not_load_leaves_the_old_version_serving(stack: Stack, person: Person) -> None:
    """A broken upload must cost nothing, and say what is wrong with it."""
    pickles = set((stack.home / "mlflow" / "artifacts").rglob("model.pkl"))
    version = person.register()
    (uploaded,) = set((stack.home / "mlflow" / "artifacts").rglob("model.pkl")) - pickles
    uploaded.write_bytes(b"half an upload")
    change = promoted(stack, person.model_id, version)
    assert change["state"] == "rejected", change
    assert "UnpicklingError" in change["detail"], change["detail"]
    assert {each["model_version"] for each in answers(stack, person.model_id)} == {"1"}
    status = httpx.get(f"{stack.control_plane}/ml/models/{person.model_id}/status", timeout=30).json()
    assert (status["status"], status["version"]) == ("ready", "1")


def test_a_version_that_is_deleted_in_mlflow_serves_on(stack: Stack, person: Person) -> None:
    """Somebody tidies the registry up; production must not notice."""
    person.client.delete_model_version(person.model_id, "1")
    person.collect_garbage()
    before = answers(stack, person.model_id)
    assert {each["model_version"] for each in before} == {"1"}
