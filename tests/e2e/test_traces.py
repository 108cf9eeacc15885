"""Traces through a running data plane: what it answers, what it sends to a collector, and that it needs none."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.data_plane import eventually
from tests.e2e.house import ServingHouse, record_of
from tests.models import Zoo
from tests.processes import free_port
from tests.span_collector import SpanCollector, attributes_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ROUTE = "POST /ml/models/{model_id}/predict"


@pytest.fixture(scope="module")
def collector() -> Iterator[SpanCollector]:
    with SpanCollector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: SpanCollector, zoo: Zoo) -> Iterator[ServingHouse]:
    """A data plane that sends spans, with a model that is served and fails on one value."""
    built = ServingHouse(
        tmp_path_factory.mktemp("traced"), otlp_endpoint=collector.url, trace_sample_ratio=0.0, workers=1
    )
    try:
        built.serve(zoo.get("raises"), "choosy")
        yield built
    finally:
        built.end()


def traceparent(trace_id: str = TRACE, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{PARENT}-{flags}"}


def answered(answer: httpx.Response) -> tuple[str, str, str]:
    """Trace, span and flags of an answer."""
    found = re.fullmatch("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", answer.headers["traceparent"])
    assert found is not None
    assert found[2] != PARENT
    return found[1], found[2], found[3]


def body_of(zoo: Zoo) -> dict[str, Any]:
    return {"input_data": record_of(zoo.get("raises").sample)}


def chunked(body: dict[str, Any]) -> Any:
    """Sent in pieces of unknown length, which is not for the short way."""
    return iter([json.dumps(body).encode()])


def post(house: ServingHouse, headers: dict[str, str], **content: Any) -> httpx.Response:
    answer = house.plane.client.post(
        "/ml/models/choosy/predict", headers={"content-type": "application/json", **headers}, **content
    )
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("way", ["short", "ordinary"])
def test_a_prediction_is_a_span_of_its_callers_trace(
    traced: ServingHouse, collector: SpanCollector, zoo: Zoo, way: str
) -> None:
    """A slow page could be followed up to our door and no further."""
    trace_id = ("a" if way == "short" else "b") * 32
    content = {"json": body_of(zoo)} if way == "short" else {"content": chunked(body_of(zoo))}
    answer = post(traced, {**traceparent(trace_id), "tracestate": "vendor=1"}, **content)
    assert answered(answer)[::2] == (trace_id, "01")
    spans = eventually(lambda: collector.of(trace_id), "the spans")
    assert spans.keys() == {ROUTE, "queue", "compute"}
    server = spans[ROUTE]
    assert (server.span_id.hex(), server.parent_span_id.hex()) == (answered(answer)[1], PARENT)
    assert server.trace_state == "vendor=1"
    assert attributes_of(server) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/ml/models/{model_id}/predict",
        "switchyard.model": "choosy",
        "switchyard.request_id": answer.json()["request_id"],
        "switchyard.version": "1",
        "url.path": "/ml/models/choosy/predict",
        "url.scheme": "http",
    }
    timings = answer.json()["metadata"]["timings"]
    for name in ("queue", "compute"):
        span = spans[name]
        assert span.parent_span_id == server.span_id
        assert server.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= server.end_time_unix_nano
        took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert took == pytest.approx(timings[name], abs=1e-6)


def test_refusals_and_the_other_protocol_are_spans_too(
    traced: ServingHouse, collector: SpanCollector, zoo: Zoo
) -> None:
    """One would see only the requests that nothing is wrong with."""
    wrong, inferred = "c" * 32, "d" * 32
    refused = traced.predict("choosy", {"input_data": {}}, headers=traceparent(wrong))
    assert (refused.status_code, answered(refused)[0]) == (422, wrong)
    record = record_of(zoo.get("raises").sample)
    inputs = [{"name": name, "shape": [1], "datatype": "FP64", "data": [value]} for name, value in record.items()]
    answer = traced.plane.client.post("/v2/models/choosy/infer", json={"inputs": inputs}, headers=traceparent(inferred))
    assert (answer.status_code, answered(answer)[0]) == (200, inferred)
    (refusal,) = eventually(lambda: collector.of(wrong), "the refusal").values()
    assert attributes_of(refusal)["http.response.status_code"] == 422
    spans = eventually(lambda: collector.of(inferred), "the inference")
    assert spans.keys() == {"POST /v2/models/{model_id}/infer", "queue", "compute"}


def test_what_the_caller_has_not_sampled_is_answered_and_not_sent(
    traced: ServingHouse, collector: SpanCollector, zoo: Zoo
) -> None:
    """Whoever pays for the collector decides what it holds."""
    kept, unsampled, broken = "e" * 32, "f" * 32, "1" * 32
    answer = post(traced, traceparent(unsampled, "00"), json=body_of(zoo))
    assert answered(answer)[::2] == (unsampled, "00")
    assert "traceparent" not in post(traced, {"traceparent": f"00-{broken}-{PARENT}-1"}, json=body_of(zoo)).headers
    assert "traceparent" not in post(traced, {}, json=body_of(zoo)).headers
    post(traced, traceparent(kept), json=body_of(zoo))
    eventually(lambda: collector.of(kept), "one that came later")
    assert not collector.of(unsampled)
    assert not collector.of(broken)
    assert all(each.parent_span_id for each in collector.spans())
    assert traced.plane.metric("switchyard_spans_dropped_total") == 0


def test_without_a_collector_nothing_is_missed(tmp_path: Path, zoo: Zoo) -> None:
    """A collector that is down would take predictions down with it, or lose spans without a word."""
    house = ServingHouse(
        tmp_path, otlp_endpoint=f"http://127.0.0.1:{free_port()}/v1/traces", trace_sample_ratio=1.0, workers=1
    )
    try:
        house.serve(zoo.get("raises"), "choosy")
        ids = {answered(post(house, {}, json=body_of(zoo)))[0] for _ in range(50)}
        assert len(ids) == 50
        eventually(lambda: house.plane.metric("switchyard_spans_dropped_total") == 150, "every span counted")
        said = [each for each in house.plane.logged() if "collector" in each["event"]]
        assert [each["level"] for each in said] == ["warning"]
        with SpanCollector() as back:  # elsewhere, but on its way to be found by a restart
            house.plane.end()
            house._settings["otlp_endpoint"] = back.url
            house.start().ready()
            eventually(lambda: house.predict("choosy", body_of(zoo)).status_code == 200, "it serves again")
            trace_id, _, _ = answered(post(house, {}, json=body_of(zoo)))
            house.plane.end()  # at once: what was answered last is not forgotten
            (server,) = [each for name, each in back.of(trace_id).items() if name == ROUTE]
            assert not server.parent_span_id
    finally:
        house.end()


def test_nothing_is_imported_that_nobody_asked_for(house: ServingHouse, traced: ServingHouse, zoo: Zoo) -> None:
    """Every installation would pay for tracing in memory and start-up time."""

    def has_protobuf(process: psutil.Process) -> bool:
        return any("google/_upb" in each.path for each in process.memory_maps())

    assert [has_protobuf(each) for each in traced.plane.apis()] == [True]
    eventually(lambda: len(house.plane.apis()) == 1, "the HTTP process is there")
    assert [has_protobuf(each) for each in house.plane.apis()] == [False]
    house.serve(zoo.get("raises"), "untraced")
    answer = house.predict("untraced", body_of(zoo), headers=traceparent())
    assert (answer.status_code, answered(answer)[::2]) == (200, (TRACE, "01"))
    assert "traceparent" not in house.predict("untraced", body_of(zoo)).headers
