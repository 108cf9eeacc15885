"""A collector of spans as OpenTelemetry's: takes OTLP over HTTP and decodes it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class SpanCollector:
    """Listens while it is entered."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.status = 200
        self.rejects = 0
        """Spans of each message that it says it has not taken."""
        self.lets_answer = threading.Event()
        """While it is not set nobody is answered."""
        self.lets_answer.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """Where spans are to be sent."""
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def spans(self) -> list[Span]:
        """All that came."""
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of(self, trace_id: str) -> dict[str, Span]:
        """Those of one trace, by name; each name once."""
        found = [each for each in self.spans() if each.trace_id.hex() == trace_id]
        assert len({each.name for each in found}) == len(found)
        return {each.name: each for each in found}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lets_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.lets_answer.wait(60)
                fits = (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                if fits and collector.status == 200:
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse()
                answer.partial_success.rejected_spans = collector.rejects
                said = answer.SerializeToString()
                self.send_response(collector.status if fits else 400)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        return Handler


def attributes_of(span: Span) -> dict[str, str | int]:
    """By their names."""
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
