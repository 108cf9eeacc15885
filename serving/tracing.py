"""W3C Trace Context: which trace a request belongs to, by its `traceparent` header, and what is known of it at its end.

A trace that comes with a request is gone on with, and the answer names it. Without one nothing is done, unless spans are
exported (serving/span_export.py) and a share of such requests shall begin traces of their own.
"""

import os
import re
import time
from typing import NamedTuple, Protocol

from serving.contracts import Stages
from serving.logs import Traced

# https://www.w3.org/TR/trace-context/#traceparent-header: version 00 ends with the flags, later ones may go on.
_TRACEPARENT = re.compile(
    rb"(?!ff|00.{53}.)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
SAMPLED = 0x01
_KNOWN_FLAGS = 0x03
"""Sampled, and (in level 2) that the trace's id is random; all others have to be sent on as 0."""


class Spot(NamedTuple):
    """What a request asks for."""

    method: str
    route: str  # the template; empty where no route is known
    path: str  # as it was sent, without its query
    model_id: str  # empty where the path names none


class Sink(Protocol):
    """Who takes requests that have ended and are to be exported."""

    def add(self, trace: "Trace") -> None:
        """At once; never raises."""
        ...


class Trace:
    """One request's part of a trace."""

    __slots__ = (
        "_sink", "ended_ns", "flags", "parent_id", "request_id", "seconds", "span_id", "spot", "stages", "state",
        "status", "trace_id", "version",
    )  # fmt: skip

    def __init__(self, trace_id: str, parent_id: str, flags: int, spot: Spot, state: str, sink: Sink | None) -> None:
        """`parent_id` is empty where the trace begins here; `state` is the client's `tracestate`; ids are hexadecimal.

        Without `sink` nothing becomes of it at its end.
        """
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.span_id = os.urandom(8).hex()
        self.flags = flags
        self.spot = spot
        self.state = state
        self.request_id = ""
        self.version = ""
        """That was asked; empty while none is."""
        self.stages: Stages | None = None
        """Of an answer of a model."""
        self.status: int | None = None
        """None: the client has left."""
        self.seconds = 0.0
        self.ended_ns = 0
        """Since 1970."""
        self._sink = sink

    @property
    def header(self) -> bytes:
        """`traceparent` of the answer: the client's trace, our span."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}".encode()

    def named(self, request_id: str) -> Traced:
        """What the log calls the request that has come under this id."""
        self.request_id = request_id
        return Traced(request_id, self.trace_id, self.span_id)

    def asked(self, version: str, request_id: str, stages: Stages | None = None) -> None:
        """A version was asked, under the id that the prediction log knows; `stages` where it has answered."""
        self.version = version
        self.request_id = request_id
        self.stages = stages

    def end(self, status: int | None, seconds: float) -> None:
        """The request is over, `seconds` after its headers; None: nobody was left to answer."""
        if self._sink is None:
            return
        self.status = status
        self.seconds = seconds
        self.ended_ns = time.time_ns()
        self._sink.add(self)


class Traces:
    """Decides which requests of one HTTP process belong to a trace."""

    def __init__(self, sink: Sink | None = None, ratio: float = 0.0) -> None:
        """`sink` gets what the client has sampled. `ratio` of the requests without a trace begin one, sampled too."""
        self.begins = sink is not None and ratio > 0.0
        """Whether requests without a trace have to be asked about at all."""
        self._sink = sink
        self._below = int(ratio * 2**56)

    def of(
        self, traceparent: bytes, spot: Spot, headers: list[tuple[bytes, bytes]], *, may_begin: bool = True
    ) -> Trace | None:
        """The trace of a request with this header, which may be empty or invalid; `headers` are all of them.

        `may_begin`: whether it may begin one of its own.
        """
        found = _TRACEPARENT.fullmatch(traceparent)
        if found is None:
            return self._begun(spot) if self.begins and may_begin else None
        trace_id, parent_id, given = found.groups()
        flags = int(given, 16) & _KNOWN_FLAGS
        sink = self._sink if flags & SAMPLED else None
        states = [] if sink is None else [value for name, value in headers if name == b"tracestate"]
        state = b",".join(states).decode("latin-1")
        return Trace(trace_id.decode(), parent_id.decode(), flags, spot, state, sink)

    def _begun(self, spot: Spot) -> Trace | None:
        trace_id = os.urandom(16)
        # By its last 56 bits, as OpenTelemetry's consistent sampling does, which level 2 has random.
        if int.from_bytes(trace_id[-7:], "big") >= self._below:
            return None
        return Trace(trace_id.hex(), "", SAMPLED, spot, "", self._sink)
