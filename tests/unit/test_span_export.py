"""Spans on their way to a collector that is there, refuses, hangs or is away."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving.contracts import Stages
from serving.span_export import SpanExporter
from serving.tracing import Sink, Spot, Trace
from tests.processes import free_port, wait_until
from tests.span_collector import SpanCollector, attributes_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPOT = Spot("POST", "/ml/models/{model_id}/predict", "/ml/models/caf\u00e9/predict", "caf\u00e9")


@contextmanager
def exporting(
    url: str, on_dropped: Callable[[int], None], *, most_waiting: int = 100, interval: float = 0.02
) -> Iterator[SpanExporter]:
    exporter = SpanExporter(url, on_dropped, instance="here:1", most_waiting=most_waiting, interval=interval)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.close()


def ended(sink: Sink, status: int | None = 200, stages: Stages | None = None, spot: Spot = SPOT) -> Trace:
    """A request that took half a second."""
    trace = Trace(TRACE, PARENT, 1, spot, "vendor=1", sink)
    trace.asked("3", "the-id", stages)
    trace.end(status, 0.5)
    return trace


def test_a_prediction_is_three_spans_that_fit_into_each_other() -> None:
    """Nobody could see where the time of a slow request went."""
    dropped: list[int] = []
    with SpanCollector() as collector:
        with exporting(collector.url, dropped.append) as exporter:
            before = time.time_ns()
            trace = ended(exporter, stages=Stages(0.1, 0.2, 0.15, 0.05))
            found = wait_until(lambda: collector.of(TRACE), "the spans")
        (resource,) = collector.requests[0].resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named == {"service.name": "switchyard-data-plane", "service.instance.id": "here:1"}
    server, queue, compute = (found[name] for name in ("POST /ml/models/{model_id}/predict", "queue", "compute"))
    assert (server.kind, queue.kind, compute.kind) == (
        Span.SPAN_KIND_SERVER,
        Span.SPAN_KIND_INTERNAL,
        Span.SPAN_KIND_INTERNAL,
    )
    assert (server.parent_span_id.hex(), server.span_id.hex()) == (PARENT, trace.span_id)
    assert queue.parent_span_id == compute.parent_span_id == server.span_id
    assert len({server.span_id, queue.span_id, compute.span_id}) == 3
    assert (server.trace_state, server.status.code) == ("vendor=1", Status.STATUS_CODE_UNSET)
    assert attributes_of(server) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/ml/models/{model_id}/predict",
        "switchyard.model": "café",
        "switchyard.request_id": "the-id",
        "switchyard.version": "3",
        "url.path": "/ml/models/café/predict",
        "url.scheme": "http",
    }
    assert before <= server.end_time_unix_nano <= time.time_ns()
    starts = [each.start_time_unix_nano - server.start_time_unix_nano for each in (queue, compute)]
    ends = [each.end_time_unix_nano - server.start_time_unix_nano for each in (queue, compute, server)]
    assert starts == [pytest.approx(1e8, abs=9), pytest.approx(3e8, abs=9)]
    assert ends == [pytest.approx(3e8, abs=9), pytest.approx(4.5e8, abs=9), pytest.approx(5e8, abs=9)]
    assert dropped == []


def test_failures_are_told_by_the_conventions_of_the_field() -> None:
    """A collector would not count errors, or count what the client did wrong as ours."""
    spots = [SPOT, SPOT, SPOT, Spot("MKCOL", "", "/x", "")]
    with SpanCollector() as collector:
        with exporting(collector.url, lambda _: None) as exporter:
            for status, spot in zip((422, 504, None, 404), spots, strict=True):
                ended(exporter, status, spot=spot)
        found = collector.spans()
    assert [each.status.code == Status.STATUS_CODE_ERROR for each in found] == [False, True, True, False]
    named = [attributes_of(each) for each in found]
    assert [each.get("error.type") for each in named] == [None, "504", "client_left", None]
    assert [each.get("http.response.status_code") for each in named] == [422, 504, None, 404]
    assert (found[3].name, named[3]["http.request.method"], "http.route" in named[3]) == ("MKCOL", "_OTHER", False)


def test_many_come_whole_and_once() -> None:
    """Under load spans would be lost between messages, or doubled."""
    dropped: list[int] = []
    with SpanCollector() as collector:
        with exporting(collector.url, dropped.append, most_waiting=5000, interval=60) as exporter:
            sent = {ended(exporter, stages=Stages(0.1, 0.1, 0.1, 0.1)).span_id for _ in range(1500)}
            wait_until(lambda: len(collector.spans()) == 4500, "all but for no interval to pass")
        servers = [each.span_id.hex() for each in collector.spans() if each.kind == Span.SPAN_KIND_SERVER]
    assert (len(servers), set(servers), dropped) == (1500, sent, [])


@pytest.mark.parametrize("how", ["refused", "partly", "away", "nonsense"])
def test_what_is_not_taken_is_counted(how: str) -> None:
    """Traces would have holes, and nobody would know."""
    dropped: list[int] = []
    with SpanCollector() as collector, socket.create_server(("127.0.0.1", 0)) as nonsense:
        collector.status = 503 if how == "refused" else 200
        collector.rejects = 1 if how == "partly" else 0
        urls = {"away": f"http://127.0.0.1:{free_port()}/v1/traces"}
        urls["nonsense"] = f"http://127.0.0.1:{nonsense.getsockname()[1]}/v1/traces"
        with exporting(urls.get(how, collector.url), dropped.append) as exporter:
            ended(exporter, stages=Stages(0.1, 0.1, 0.1, 0.1))
            if how == "nonsense":
                connection, _ = nonsense.accept()
                with connection:
                    connection.sendall(b"what?\r\n\r\n")
            wait_until(lambda: dropped, "the loss to be counted")
    assert dropped == [1 if how == "partly" else 3]


def test_a_collector_that_hangs_costs_only_what_does_not_fit() -> None:
    """Requests would wait for a collector, or the process would fill its memory."""
    dropped: list[int] = []
    with SpanCollector() as collector:
        collector.lets_answer.clear()
        with exporting(collector.url, dropped.append, most_waiting=10) as exporter:
            ended(exporter)
            wait_until(lambda: not exporter._waiting, "the first to be on its way")
            began = time.monotonic()
            for _ in range(50):
                ended(exporter)
            assert time.monotonic() - began < 1
            assert sum(dropped) == 40
            collector.lets_answer.set()
            wait_until(lambda: len(collector.spans()) == 11, "the others")
    assert sum(dropped) == 40


def test_it_ends_in_time_and_counts_what_was_left() -> None:
    """A collector that hangs would hold up every restart."""
    dropped: list[int] = []
    with SpanCollector() as collector:
        collector.lets_answer.clear()
        with exporting(collector.url, dropped.append) as exporter:
            ended(exporter)
            wait_until(lambda: not exporter._waiting, "the first to be on its way")
            ended(exporter)
            began = time.monotonic()
        assert time.monotonic() - began < 5  # it waits for 3
        assert dropped == [1]


def test_what_came_last_is_sent_at_the_end() -> None:
    """The requests before a restart are those one wants to see."""
    with SpanCollector() as collector:
        with exporting(collector.url, lambda _: None, interval=60) as exporter:
            ended(exporter)
        assert len(collector.spans()) == 1
