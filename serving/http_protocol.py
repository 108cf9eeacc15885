"""uvicorn's HTTP protocol with a short way for predictions: no task, no scope and no messages for each of them.

What uvicorn does for a request besides parsing it costs as much as validating, asking and logging it do. So a plain
predict request (its path known, JSON, a short body of announced length, nothing pipelined before it) goes from the
parser straight to its endpoint, and its answer from there to the socket. All others take uvicorn's ordinary way to the
same endpoint (serving/front.py), and are answered alike.

It overrides callbacks that uvicorn does not promise: tests/contracts/test_uvicorn.py holds each of them.
"""

import asyncio
import math
import time
from http import HTTPStatus
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.answers import CLOSE, Answer, headers_of, write_response
from serving.contracts import InferenceResponse
from serving.errors import BodyTooSlow
from serving.ids import to_text
from serving.intake import BODY_TIMEOUT, Headers, Said, read_headers
from serving.logs import Traced
from serving.tracing import Trace

SHORT_BODY = 64 * 1024
"""Bytes. Of longer bodies uvicorn holds back a part until somebody asks for it."""

_STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_JSON = b"application/json"
# What headers_of comes to for nearly every answer.
_USUAL_HEAD = _STATUS_LINES[200] + (
    b"%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n"
)


class ShortWay(Protocol):
    """Where a predict request of one model goes."""

    begins_traces: bool
    """Whether requests that come without a trace have to be asked about."""

    def new_id(self) -> bytes:
        """For the request."""
        ...

    def trace_of(self, said: Said, url: bytes, headers: Headers) -> Trace | None:
        """What the request is part of, if anything."""
        ...

    def begin(self, way: "Short", body: bytes) -> None:
        """Have it answered, now or later, by `set_result` or `set_exception`."""
        ...

    def refusal(self, way: "Short", error: Exception) -> Answer:
        """The answer to an error."""
        ...

    def ended(self, status: int | None, seconds: float) -> None:
        """Count it. None: its client left."""
        ...


class Front(Protocol):
    """What the protocol has to know of the application."""

    stopping: bool
    """Whether each answer shall ask its client to connect elsewhere."""
    short_ways: dict[bytes, ShortWay]
    """By the URL as it is asked for."""
    short_body: int
    """Bytes of a body on the short way, at most SHORT_BODY."""


class PredictProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, front: Front, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.front = front
        self.short_body = front.short_body
        self._idle_since = math.inf
        self._idle_timer: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        """Called by the parser. The scope comes later, and only on the ordinary way."""
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        way = self.front.short_ways.get(self.url)
        if way is not None and self._is_plain():
            said = read_headers(self.headers)
            length = said.length
            if said.content_type == _JSON and length.isdigit() and int(length) <= self.short_body and not said.waits:
                cycle = Short(self, way, said, keep_alive=self.parser.should_keep_alive())
                self.cycle = cast("RequestResponseCycle", cycle)
                return
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        super().on_message_complete()
        cycle: Any = self.cycle
        if type(cycle) is Short and not cycle.response_complete:
            cycle.begin()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        super().data_received(data)
        cycle: Any = self.cycle
        if type(cycle) is Short and cycle.more_body:
            cycle.wait_for_body(self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        super().connection_lost(exc)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        cycle: Any = self.cycle
        if type(cycle) is Short:
            cycle.lost()
        # Both know this protocol. The collector looks for such cycles seldom, and connections come and go.
        self.parser = cast("Any", None)
        self.cycle = cast("Any", None)

    def on_response_complete(self) -> None:
        """Called at the end of each response, on both ways."""
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        # One timer that looks now and then, where uvicorn sets and cancels one for each request.
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def _unset_keepalive_if_required(self) -> None:
        super()._unset_keepalive_if_required()
        self._idle_since = math.inf

    def _look_if_idle(self) -> None:
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.timeout_keep_alive_handler()
        else:
            self._idle_timer = self.loop.call_later(min(left, self.timeout_keep_alive), self._look_if_idle)

    def _is_plain(self) -> bool:
        parser = self.parser
        return bool(
            parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not (self.pipeline or self.flow.write_paused)
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
        )


class _NoEvent:
    """Stands where uvicorn wakes the task that waits for a body."""

    def set(self) -> None:
        """Nobody waits."""


class Short:
    """One request on the short way: a cycle to uvicorn, and a future to the dispatcher."""

    __slots__ = (
        "_settled", "_timer", "_way", "body", "disconnected", "id", "keep_alive", "message_event", "more_body",
        "named", "protocol", "request_id", "response_complete", "said", "started", "text", "trace",
    )  # fmt: skip

    def __init__(self, protocol: PredictProtocol, way: ShortWay, said: Said, *, keep_alive: bool) -> None:
        self.protocol = protocol
        self.said = said
        self.started = time.perf_counter()
        self.id = way.new_id()
        self.text = to_text(self.id)
        self.request_id = said.request_id or self.text
        self.named: str | Traced = self.request_id  # in the log
        self.trace: Trace | None = None
        if said.traceparent or way.begins_traces:
            self.trace = trace = way.trace_of(said, protocol.url, protocol.headers)
            self.named = self.request_id if trace is None else trace.named(self.request_id)
        self._way = way
        self._settled = False
        self._timer: asyncio.TimerHandle | None = None
        # What uvicorn sets and looks at:
        self.body = bytearray()
        self.more_body = True
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NO_EVENT

    def begin(self) -> None:
        """The body is here."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._way.begin(self, bytes(self.body))
        except Exception as error:  # noqa: BLE001  # it is logged where it is none of ours
            self.set_exception(error)

    def wait_for_body(self, loop: asyncio.AbstractEventLoop) -> None:
        """Some of it is still to come."""
        if self._timer is None:
            self._timer = loop.call_later(BODY_TIMEOUT, self.set_exception, BodyTooSlow(BODY_TIMEOUT))

    def lost(self) -> None:
        """The connection is gone. Where a worker was asked, its answer ends this."""
        if self.more_body and not self._settled:
            self._settled = True
            self._end(None)

    def done(self) -> bool:
        """Whether it has come to an end."""
        return self._settled

    def set_result(self, response: InferenceResponse | bytes) -> None:
        """Answer with this. Never raises: whoever calls it has others to answer."""
        try:
            body = response if isinstance(response, bytes) else write_response(response)
        except Exception as error:  # noqa: BLE001  # a model's label that JSON cannot carry
            self.set_exception(error)
            return
        self._settled = True
        self._answer(Answer(200, body))

    def set_exception(self, error: Exception) -> None:
        """Answer with this error. Never raises."""
        self._settled = True
        self._answer(self._way.refusal(self, error))

    def _answer(self, answer: Answer) -> None:
        protocol = self.protocol
        if self.disconnected or protocol.transport.is_closing():
            self._end(None)
            return
        closing = protocol.front.stopping or not self.keep_alive or CLOSE in answer.headers
        defaults = _DEFAULTS.lines(protocol.server_state.default_headers)
        if answer.status == 200 and self.trace is None and not closing:
            head = _USUAL_HEAD % (defaults, len(answer.body), self.request_id.encode())
        else:
            traceparent = None if self.trace is None else self.trace.header
            headers = headers_of(answer, self.request_id, traceparent, closing=closing)
            head = b"%b%b%b\r\n" % (_STATUS_LINES[answer.status], defaults, _lines(headers))
        protocol.transport.write(head + answer.body)
        self._end(answer.status)
        if closing:
            protocol.transport.close()
        protocol.on_response_complete()

    def _end(self, status: int | None) -> None:
        self.response_complete = True
        if self._timer is not None:
            self._timer.cancel()
        seconds = time.perf_counter() - self.started
        self._way.ended(status, seconds)
        if self.trace is not None:
            self.trace.end(status, seconds)


class _Defaults:
    """uvicorn's own headers: it makes a new list of them each second."""

    def __init__(self) -> None:
        self._headers: Headers | None = None
        self._lines = b""

    def lines(self, headers: Headers) -> bytes:
        """As they are sent."""
        if headers is not self._headers:
            self._headers, self._lines = headers, _lines(headers)
        return self._lines


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % each for each in headers])


_DEFAULTS = _Defaults()
_NO_EVENT = _NoEvent()
