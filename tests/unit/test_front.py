"""The outermost layer, in this process: what is hard to provoke in a running server."""

import asyncio
import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from serving import errors, metrics
from serving.answers import STATUS_OF, status_of
from serving.front import FrontOptions, HttpFront
from serving.logs import configure_logging
from serving.metrics import Metrics
from serving.model_metrics import SlotMetrics
from serving.places import TEMPLATES

Message = MutableMapping[str, Any]


def _front() -> HttpFront:
    async def litserves(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("no request may reach LitServe's own routes")

    counted = Metrics(TEMPLATES, api_processes=1, workers=1, started=0.0)
    options = FrontOptions(
        slot=0,
        worker_addresses=[],
        agent_address="",
        replica_folder=Path(),
        max_body_bytes=1024,
        spool_max_bytes=1024,
        log_predictions=False,
        log_payloads=False,
        otlp_endpoint="",
        trace_sample_ratio=0.0,
    )
    return HttpFront(litserves, options=options, metrics=counted, slot_metrics=SlotMetrics(1))


def _ask(front: HttpFront, path: str, receive: Any, method: str = "POST") -> list[Message]:
    """The messages that the layer sends for one request."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"11111111-2222-4333-8444-555555555555")]
    asyncio.run(front({"type": "http", "method": method, "path": path, "headers": headers}, receive, send))
    return sent


def test_an_unexpected_error_is_logged_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A client would see our stack, or an operator nothing of what went wrong."""
    configure_logging("data-plane", "info")

    async def receive() -> Message:
        raise RuntimeError(f"the wire is on fire at {83 / 2}")

    start, body = _ask(_front(), "/ml/models/m/predict", receive)
    answer = json.loads(body["body"])
    assert (start["status"], answer["error"]) == (500, "InternalError")
    assert "fire" not in json.dumps(answer)
    logged = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert logged["exception"].endswith("RuntimeError")
    assert "in receive" in logged["exception"]
    assert "41.5" not in json.dumps(logged)  # a message may carry what the client sent
    assert logged["request_id"] == answer["request_id"] == "11111111-2222-4333-8444-555555555555"


def test_a_client_that_leaves_is_counted_and_not_answered() -> None:
    """Aborted uploads would be logged as our errors, and count against the error rate."""
    front = _front()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert _ask(front, "/ml/models/m/predict", receive) == []
    _, body = _ask(front, "/metrics", receive, "GET")
    assert b'{route="/ml/models/{model_id}/predict",method="POST",status="499"} 1' in body["body"]


def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends half a body would hold its connection and memory for ever."""
    monkeypatch.setattr("serving.intake.BODY_TIMEOUT", 0.01)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    start, body = _ask(_front(), "/ml/models/m/predict", receive)
    assert (start["status"], json.loads(body["body"])["error"]) == (408, "BodyTooSlow")
    assert (b"connection", b"close") in start["headers"]


def _leaves(root: type[errors.SwitchyardError]) -> set[type[errors.SwitchyardError]]:
    return set().union(*map(_leaves, root.__subclasses__())) if root.__subclasses__() else {root}


def test_every_error_that_can_be_answered_has_a_status_that_is_counted() -> None:
    """An error would surface as a bare 500, or break the answer while it is counted."""
    at_home = {errors.DatabaseUnavailable, errors.ArtifactError, errors.CannotStart, errors.BrokenChannel}
    here = {each for each in _leaves(errors.SwitchyardError) if each.__module__ == errors.__name__}
    unanswered = set().union(*map(_leaves, at_home))
    assert {each for each in here if status_of(each.__new__(each)) is None} == unanswered
    assert set(STATUS_OF.values()) <= set(metrics.STATUSES)
