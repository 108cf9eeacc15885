"""What the control plane says of its API is what it does: requests made from its own description."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx
import hypothesis.strategies as st
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core import NOT_SET
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Err, Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.conftest import Stack
from tests.mlflow_person import Person
from tests.processes import wait_until

SECONDS = 45.0
"""For all operations together."""

REFUSED = {"POST /ml/changes/{change_id}/cancel": 409}
"""What is right to ask and still refused: the change that there is has ended."""

CONFORMANCE = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


class Aim(Enum):
    """What a request is about."""

    ANYWHERE = "whatever the description allows, or forbids"
    EXISTING = "the same, at something that exists"
    RIGHT = "the same, with a right body"


@dataclass(frozen=True)
class Known:
    """What really exists, so that not every answer is a 404."""

    path_parameters: dict[str, str]
    bodies: dict[str, Any]  # operation -> a right body


@pytest.fixture(scope="module")
def known(stack: Stack) -> Known:
    """A registered model that serves, and the change that made it."""
    person = Person(stack.mlflow, "", stack.home)
    version = person.register()
    wanted = {"target": version, "reason": "to be asked", "skip_gates": True}
    url = f"{stack.control_plane}/ml/models/{person.model_id}"
    begun = httpx.post(f"{url}/promote", json=wanted, timeout=60)
    assert begun.status_code == 202, begun.text
    change = f"{stack.control_plane}/ml/changes/{begun.json()['id']}"
    ended = wait_until(lambda: _ended(httpx.get(change, timeout=20).json()), "the model to serve")
    assert ended is not None
    assert ended["state"] == "succeeded", ended
    record = {"age": 1.0, "balance": 2.0}
    inputs = [{"name": name, "shape": [1], "datatype": "FP64", "data": [each]} for name, each in record.items()]
    return Known(
        {"model_id": person.model_id, "version": version, "change_id": begun.json()["id"]},
        {
            "POST /ml/models/{model_id}/predict": {"input_data": record},
            "POST /v2/models/{model_id}/infer": {"inputs": inputs},
            "POST /v2/models/{model_id}/versions/{version}/infer": {"inputs": inputs},
            "POST /ml/models/{model_id}/promote": {**wanted, "dry_run": True},
            "PUT /ml/models/{model_id}/config": {"timeout": 20},
            "POST /ml/changes/{change_id}/cancel": {"reason": "no longer wanted", "by": "ada"},
        },
    )


@pytest.fixture(scope="module")
def operations(stack: Stack) -> list[Any]:
    """Every operation of the description, which must itself be right."""
    schema = schemathesis.openapi.from_url(f"{stack.control_plane}/openapi.json")
    found = list(schema.get_all_operations())
    assert not [each for each in found if isinstance(each, Err)]
    return [each.ok() for each in found if isinstance(each, Ok)]


def test_everything_works_when_asked_rightly(operations: list[Any], known: Known) -> None:
    """An operation that refuses every request conforms to its description, and is of no use to anybody."""
    statuses = {}
    for operation in operations:
        case = operation.Case(
            path_parameters=_shared(known.path_parameters, [each.name for each in operation.path_parameters]),
            body=known.bodies.get(operation.label, NOT_SET),
            media_type="application/json" if operation.label in known.bodies else None,
        )
        answer = case.call_and_validate(checks=CONFORMANCE, timeout=20)
        statuses[operation.label] = answer.status_code
    assert known.bodies.keys() <= statuses.keys()
    assert {label: status for label, status in statuses.items() if not 200 <= status < 300} == REFUSED


def test_no_answer_is_undocumented(operations: list[Any], known: Known) -> None:
    """Clients are generated from the description: an answer that is not in it breaks them in use."""
    failures: dict[str, str] = {}
    share = SECONDS / len(operations)
    for operation in operations:
        failures |= _failures(operation, known, time.monotonic() + share)
    assert not failures, "\n\n".join(f"{what}\n{request}" for what, request in failures.items())


def _ended(change: dict[str, Any]) -> dict[str, Any] | None:
    return change if change["state"] in ("succeeded", "rejected", "cancelled", "restored", "failed") else None


def _failures(operation: Any, known: Known, until: float) -> dict[str, str]:
    """What went wrong with one operation: a sentence, and the request that shows it."""
    found: dict[str, str] = {}
    right = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    # No search for the smallest: each failure is one request, which is shown as it was.
    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(Aim), st.one_of(right, wrong) if _can_be_wrong(operation) else right)
    def ask(aim: Aim, case: Any) -> None:
        if time.monotonic() > until:
            return
        if aim is not Aim.ANYWHERE:
            case.path_parameters.update(_shared(known.path_parameters, case.path_parameters))
        if aim is Aim.RIGHT and operation.label in known.bodies:
            case.body, case.media_type = known.bodies[operation.label], "application/json"
        found.update({what: each for what, each in _judge(case, operation.label) if what not in found})

    ask()
    return found


def _shared(known: dict[str, str], wanted: Iterable[str]) -> dict[str, str]:
    return {name: value for name, value in known.items() if name in wanted}


def _judge(case: Any, label: str) -> Iterator[tuple[str, str]]:
    """Ask, and hold the answer against the description."""
    answer = case.call(timeout=20)
    request = f"{case.as_curl_command()}\n{answer.status_code} {answer.text[:300]}"
    if answer.status_code == 500:
        yield f"{label} answered 500", request
        return
    try:
        case.validate_response(answer, checks=CONFORMANCE)
    except FailureGroup as group:
        for each in group.exceptions:
            yield f"{label}: {each.title if isinstance(each, Failure) else repr(each)}", f"{request}\n{each}"


def _can_be_wrong(operation: Any) -> bool:
    """An operation without parameters and body cannot be asked wrongly."""
    return any(operation.iter_parameters()) or bool(operation.body)
