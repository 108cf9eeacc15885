"""Traces: which headers are gone on with, which begin, and that the short way to a model knows them too."""

import asyncio
import functools
import json
import re
import socket
from contextlib import closing
from typing import Any

import hypothesis.strategies as st
import pytest
import uvicorn
from hypothesis import given

from serving.http_protocol import PredictProtocol
from serving.ids import PredictionIds
from serving.logs import Traced, configure_logging, request_of_the_log
from serving.short_way import PredictWay
from serving.tracing import Spot, Trace, Traces
from tests.unit.test_front import _front

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"
SPOT = Spot("POST", "/ml/models/{model_id}/predict", "/ml/models/m/predict", "m")
PATH = "/ml/models/m/predict"


class Kept(list[Trace]):
    """A Sink."""

    def add(self, trace: Trace) -> None:
        self.append(trace)


@pytest.mark.parametrize(
    ("given_header", "flags"),
    [
        (VALID, "01"),
        (f"00-{TRACE}-{PARENT}-00", "00"),
        (f"00-{TRACE}-{PARENT}-03", "03"),
        (f"00-{TRACE}-{PARENT}-ff", "03"),  # flags that nobody has defined yet must not be sent on
        (f"01-{TRACE}-{PARENT}-01", "01"),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-brings", "01"),
    ],
)
def test_a_valid_header_is_gone_on_with(given_header: str, flags: str) -> None:
    """The caller's trace would end at our door, and our part of it could not be found."""
    trace = Traces().of(given_header.encode(), SPOT, [])
    assert trace is not None
    found = re.fullmatch(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", trace.header)
    assert found is not None
    assert (found[1].decode(), found[3].decode(), trace.parent_id) == (TRACE, flags, PARENT)
    assert found[2].decode() not in (PARENT, "0" * 16)


@pytest.mark.parametrize(
    "header",
    [
        "",
        VALID[:-1],
        f"{VALID}0",
        f"{VALID}-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        VALID.upper(),
        f"0-{TRACE}-{PARENT}-01",
        f"01-{TRACE}-{PARENT}-01.more",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f" {VALID}",
        VALID.replace("-", "_"),
    ],
)
def test_an_invalid_header_counts_as_none(header: str) -> None:
    """Nonsense of one client would get into traces, and collectors refuse whole messages for it."""
    assert Traces().of(header.encode(), SPOT, []) is None


@given(st.binary(max_size=70))
def test_no_header_breaks_anything(header: bytes) -> None:
    """A client could make predictions fail by a header that has nothing to do with them."""
    trace = Traces().of(header, SPOT, [])
    assert trace is None or re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]", trace.header)


def test_only_what_is_sampled_goes_out() -> None:
    """A collector would be flooded with what its owner has decided not to look at."""
    sink = Kept()
    states = [(b"tracestate", b"a=1"), (b"x", b"y"), (b"tracestate", b"b=2")]
    for flags in ("00", "02", "01", "03"):
        trace = Traces(sink, ratio=1.0).of(f"00-{TRACE}-{PARENT}-{flags}".encode(), SPOT, states)
        assert trace is not None
        trace.end(200, 0.5)
    assert [(each.flags, each.state, each.status, each.seconds) for each in sink] == [
        (1, "a=1,b=2", 200, 0.5),
        (3, "a=1,b=2", 200, 0.5),
    ]


def test_requests_without_a_trace_begin_one_by_the_ratio() -> None:
    """Nobody would see anything of clients that do not trace, or everything of them."""
    assert not Traces(None, ratio=1.0).begins
    assert not Traces(Kept(), ratio=0.0).begins
    assert Traces(Kept(), ratio=0.0).of(b"", SPOT, []) is None
    always = [Traces(Kept(), ratio=1.0).of(b"garbage", SPOT, []) for _ in range(100)]
    assert len({each.trace_id for each in always if each is not None}) == 100
    assert {(each.parent_id, each.flags) for each in always if each is not None} == {("", 1)}
    traces = Traces(Kept(), ratio=0.25)
    begun = sum(traces.of(b"", SPOT, []) is not None for _ in range(4000))
    assert 850 < begun < 1150  # five standard deviations


class _Breaks:
    """An endpoint that fails in a way that nobody foresaw, and notes what the log would say meanwhile."""

    model_id = "m"

    def __init__(self) -> None:
        self.named: list[Any] = []

    def begin(self, _body: bytes, _asking: Any, _answer: Any) -> None:
        self.named.append(request_of_the_log.get())
        raise RuntimeError

    async def predict(self, _body: bytes, _asking: Any) -> Any:
        self.named.append(request_of_the_log.get())
        raise RuntimeError


def _exchange(endpoint: _Breaks, traces: Traces, *requests: bytes) -> list[bytes]:
    """The answers of a real server, each request on a connection of its own."""
    configure_logging("data-plane", "info")
    front = _front()
    front._traces = traces
    front._endpoints["m"] = endpoint  # type: ignore[assignment]
    front._catalogue.models["m"] = None  # type: ignore[assignment]
    front._service = front._answers = object()  # type: ignore[assignment]
    front.short_ways[PATH.encode()] = PredictWay(
        endpoint,  # type: ignore[arg-type]
        PredictionIds(),
        front._refuse_predict,
        front._count_predict,
        traces,
        SPOT.route,
    )

    async def ask(port: int, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return answer

    async def all_of_them() -> list[bytes]:
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            http: Any = functools.partial(PredictProtocol, front=front)
            config = uvicorn.Config(front, http=http, ws="none", lifespan="off", log_config=None, access_log=False)
            server = uvicorn.Server(config)
            config.load()
            server.lifespan = config.lifespan_class(config)
            await server.startup([listener])
            try:
                return [await ask(listener.getsockname()[1], each) for each in requests]
            finally:
                await server.shutdown([listener])

    return asyncio.run(all_of_them())


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def _short(headers: str = "") -> bytes:
    return f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}content-length: 2\r\n\r\n{{}}".encode()


def _ordinary(headers: str = "") -> bytes:
    chunked = f"{headers}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    return f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{chunked}".encode()


@pytest.mark.parametrize("request_of", [_short, _ordinary])
def test_log_lines_and_answers_name_the_trace(request_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """From a trace one could not find what went wrong, nor from a log line the trace."""
    endpoint = _Breaks()
    (answer,) = _exchange(endpoint, Traces(), request_of(f"traceparent: {VALID}\r\n"))
    assert answer.startswith(b"HTTP/1.1 500")
    found = re.search(rf"traceparent: 00-{TRACE}-([0-9a-f]{{16}})-01\r\n".encode(), answer)
    assert found is not None
    (line,) = [each for each in _lines(capsys) if each["event"] == "request failed unexpectedly"]
    assert (line["trace_id"], line["span_id"]) == (TRACE, found[1].decode())
    assert f"x-request-id: {line['request_id']}\r\n".encode() in answer
    assert endpoint.named == [Traced(line["request_id"], TRACE, found[1].decode())]


@pytest.mark.parametrize("request_of", [_short, _ordinary])
def test_without_a_valid_header_nothing_is_said_of_traces(request_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every answer and line would carry ids that lead nowhere."""
    endpoint = _Breaks()
    answers = _exchange(endpoint, Traces(), request_of(), request_of(f"traceparent: {VALID.upper()}\r\n"))
    assert [each.split(b" ")[1] for each in answers] == [b"500", b"500"]
    assert not any(b"traceparent" in each for each in answers)
    lines = [each for each in _lines(capsys) if each["event"] == "request failed unexpectedly"]
    assert len(lines) == 2
    assert not any({"trace_id", "span_id"} & line.keys() for line in lines)
    assert all(isinstance(each, str) for each in endpoint.named)


@pytest.mark.parametrize("request_of", [_short, _ordinary])
def test_what_has_ended_is_told_once_with_its_status(request_of: Any) -> None:
    """A trace would show a prediction twice, or not whether it failed."""
    sink = Kept()
    plain, _ = _exchange(
        _Breaks(),
        Traces(sink, ratio=1.0),
        request_of(),
        request_of(f"traceparent: {VALID}\r\nx-request-timeout: -\r\n"),
    )
    begun, gone_on = sink
    assert f"traceparent: 00-{begun.trace_id}-{begun.span_id}-01\r\n".encode() in plain
    assert (begun.parent_id, begun.status, begun.spot) == ("", 500, SPOT)
    assert (gone_on.trace_id, gone_on.parent_id, gone_on.status) == (TRACE, PARENT, 422)
    assert all(0 < each.seconds < 60 for each in sink)


def test_probes_begin_no_trace() -> None:
    """Health checks and scrapes would fill the collector."""
    sink = Kept()
    asked = [f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in ("/health/live", "/metrics", "/nowhere")]
    asked += [
        f"GET /nowhere HTTP/1.1\r\nhost: x\r\ntraceparent: {given_header}\r\n\r\n".encode()
        for given_header in (VALID.upper(), VALID)
    ]
    answers = _exchange(_Breaks(), Traces(sink, ratio=1.0), *asked)
    assert [b"traceparent" in each for each in answers] == [False, False, False, False, True]
    assert [(each.spot.route, each.status) for each in sink] == [("", 404)]
