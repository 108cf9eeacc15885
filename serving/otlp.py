"""Ended requests as spans in OTLP's protobuf, with the names of OpenTelemetry's semantic conventions for HTTP.

Encoded by the protocol's own message classes and not by OpenTelemetry's SDK: that takes three times as long for the same
bytes, all of it under the interpreter's lock that the event loop needs.
"""

import os
from collections.abc import Iterable
from functools import lru_cache

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from serving.contracts import Stages
from serving.tracing import Trace

CONTENT_TYPE = "application/x-protobuf"
LONGEST_ANSWER = 65_536
"""Bytes of a collector's answer that are read."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_SCOPE = InstrumentationScope(name="switchyard.serving")
_CHILDREN = ("queue", "compute")


def resource(service: str, instance: str) -> Resource:
    """Who the spans are of."""
    return Resource(attributes=[_text("service.name", service), _text("service.instance.id", instance)])


def message(of: Resource, traces: Iterable[Trace]) -> bytes:
    """An ExportTraceServiceRequest."""
    spans = [span for trace in traces for span in _spans(trace)]
    whole = ResourceSpans(resource=of, scope_spans=[ScopeSpans(scope=_SCOPE, spans=spans)])
    return bytes(ExportTraceServiceRequest(resource_spans=[whole]).SerializeToString())


def spans_in(trace: Trace) -> int:
    """How many a request comes to."""
    return 1 if trace.stages is None else 1 + len(_CHILDREN)


def rejected(answer: bytes) -> int:
    """How many spans a collector says that it has not taken; 0 where it says nothing that can be read."""
    try:
        return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
    except DecodeError:
        return 0


def _spans(trace: Trace) -> list[Span]:
    start = trace.ended_ns - int(trace.seconds * 1e9)
    server = _span(trace, trace.span_id, trace.parent_id, _name(trace), start, trace.ended_ns)
    server.kind = Span.SPAN_KIND_SERVER
    server.trace_state = trace.state
    server.attributes.extend(_attributes(trace))
    if trace.status is None or trace.status >= 500:
        server.status.code = Status.STATUS_CODE_ERROR
    return [server] if trace.stages is None else [server, *_children(trace, trace.stages, start)]


def _children(trace: Trace, stages: Stages, start: int) -> Iterable[Span]:
    """The stages follow each other; the way back from the model is part of `queue`, which is shown before `compute`."""
    begun = start + int(stages.validate * 1e9)
    for name, seconds in zip(_CHILDREN, (stages.queue, stages.compute), strict=True):
        ended = begun + int(seconds * 1e9)
        span = _span(trace, os.urandom(8).hex(), trace.span_id, name, begun, ended)
        span.kind = Span.SPAN_KIND_INTERNAL
        yield span
        begun = ended


def _span(trace: Trace, span_id: str, parent_id: str, name: str, start: int, end: int) -> Span:
    return Span(
        trace_id=bytes.fromhex(trace.trace_id),
        span_id=bytes.fromhex(span_id),
        parent_span_id=bytes.fromhex(parent_id),
        flags=trace.flags,
        name=name,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
    )


def _name(trace: Trace) -> str:
    return f"{trace.spot.method} {trace.spot.route}" if trace.spot.route else trace.spot.method


def _attributes(trace: Trace) -> Iterable[KeyValue]:
    spot = trace.spot
    yield _text("url.scheme", "http")
    yield _fresh_text("url.path", spot.path)
    yield _fresh_text("switchyard.request_id", trace.request_id)
    yield _text("http.request.method", spot.method if spot.method in _METHODS else "_OTHER")
    if trace.status is not None:
        yield _number("http.response.status_code", trace.status)
    if trace.status is None or trace.status >= 500:
        yield _text("error.type", "client_left" if trace.status is None else str(trace.status))
    named = (("http.route", spot.route), ("switchyard.model", spot.model_id), ("switchyard.version", trace.version))
    for key, value in named:
        if value:
            yield _text(key, value)


def _fresh_text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


_text = lru_cache(1024)(_fresh_text)
"""For what is the same in many requests."""


@lru_cache(64)
def _number(key: str, value: int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value))
