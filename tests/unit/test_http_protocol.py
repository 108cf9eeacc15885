"""The short way of predict requests, on real sockets: what clients may send, and when."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.answers import Answer
from serving.contracts import InferenceResponse
from serving.http_protocol import SHORT_BODY, PredictProtocol, Short
from serving.ids import to_uuid

HEAD = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


def request(body: bytes, *more: bytes) -> bytes:
    lines = b"".join(each + b"\r\n" for each in more)
    return HEAD + lines + b"content-length: %d\r\n\r\n" % len(body) + body


class Way:
    """Keeps what comes until the test answers it."""

    begins_traces = False

    def __init__(self) -> None:
        self.begun: list[tuple[Short, bytes]] = []
        self.counted: list[int | None] = []
        self.came = asyncio.Event()

    def new_id(self) -> bytes:
        return bytes(16)

    def trace_of(self, _said: Any, _url: bytes, _headers: Any) -> None:
        return None

    def begin(self, way: Short, body: bytes) -> None:
        if body == b"refuse":
            raise ValueError(body)
        self.begun.append((way, body))
        self.came.set()

    def refusal(self, _way: Short, error: Exception) -> Answer:
        return Answer(422, type(error).__name__.encode())

    def ended(self, status: int | None, _seconds: float) -> None:
        self.counted.append(status)

    async def next(self) -> tuple[Short, bytes]:
        while not self.begun:
            self.came.clear()
            await asyncio.wait_for(self.came.wait(), 10)
        return self.begun.pop(0)


class Front:
    """The application; what takes the ordinary way is answered by it with its body in upper case."""

    def __init__(self) -> None:
        self.stopping = False
        self.way = Way()
        self.short_ways: dict[bytes, Any] = {b"/predict": self.way}
        self.short_body = SHORT_BODY
        self.ordinary: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.ordinary.append(scope["path"])
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body.upper()})


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        first, *lines = head.strip().split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(b":") for each in lines)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers[b"content-length"])), 10)
        return int(first.split()[1]), headers, body

    async def closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 10) == b""


@asynccontextmanager
async def serving(keep_alive: float = 75.0) -> AsyncIterator[tuple[Front, Callable[[], Awaitable[Client]]]]:
    front = Front()
    config = uvicorn.Config(front, log_config=None, lifespan="off", ws="none", timeout_keep_alive=keep_alive)  # type: ignore[arg-type]
    config.load()
    state = ServerState()
    make = partial(PredictProtocol, config=config, server_state=state, app_state={}, front=front)
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection(*server.sockets[0].getsockname())))
        return clients[-1]

    try:
        yield front, connect
    finally:
        for each in clients:
            each.writer.close()
        server.close()
        await server.wait_closed()
        gc.collect()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what happens in a protocol has no event
            await asyncio.sleep(0.001)


def run(test: Callable[[Front, Callable[[], Awaitable[Client]]], Awaitable[None]], **options: Any) -> None:
    async def inside() -> None:
        async with serving(**options) as (front, connect):
            await test(front, connect)

    asyncio.run(inside())


def test_a_request_is_answered_and_its_connection_kept() -> None:
    """Every client would connect anew for each request, or read an answer that is none."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        for _ in range(2):
            await client.send(request(b"{}", b"x-request-id: 11111111-2222-4333-8444-555555555555"))
            way, body = await front.way.next()
            way.set_result(b'{"a":1}')
            status, headers, answer = await client.answer()
            assert (status, body, answer) == (200, b"{}", b'{"a":1}')
            assert headers[b"content-type"] == b"application/json"
            assert headers[b"x-request-id"] == b"11111111-2222-4333-8444-555555555555"
            assert b"connection" not in headers
        assert (front.ordinary, front.way.counted) == ([], [200, 200])

    run(test)


def test_a_body_in_pieces_is_waited_for() -> None:
    """A slow network would get refusals for good requests."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        data = request(b'{"long": "body"}')
        for at in range(0, len(data), 7):
            await client.send(data[at : at + 7])
            await asyncio.sleep(0)
        way, body = await front.way.next()
        way.set_result(b"{}")
        assert body == b'{"long": "body"}'
        assert (await client.answer())[0] == 200

    run(test)


def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    """A client that pipelines would take one answer for another's."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(request(b"one") + request(b"two") + request(b"three"))
        way, _ = await front.way.next()
        way.set_result(b"ONE")
        assert [(await client.answer())[2] for _ in range(3)] == [b"ONE", b"TWO", b"THREE"]
        await client.send(request(b"four"))
        way, _ = await front.way.next()  # and then the short way is open again
        way.set_result(b"FOUR")
        assert (await client.answer())[2] == b"FOUR"

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        request(b"a", b"expect: 100-continue"),
        request(b"a").replace(b"/predict", b"/predict?x=1"),
        request(b"a").replace(b"/predict", b"/other"),
        request(b"a").replace(b"POST", b"PUT"),
        request(b"a").replace(b"application/json", b"text/plain"),
        request(b"a").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(b"a" * (SHORT_BODY + 1)),
    ],
    ids=["chunked", "expects", "query", "path", "method", "type", "old", "large"],
)
def test_all_else_takes_the_ordinary_way(data: bytes) -> None:
    """Rules of the ordinary way, such as limits and 100-continue, would not hold."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(data)
        if b"100-continue" in data:
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        status, _, body = await client.answer()
        assert (status, set(body)) == (200, {ord("A")})
        assert len(front.ordinary) == 1
        assert front.way.begun == []

    run(test)


def test_nothing_is_left_of_a_connection_that_is_gone() -> None:
    """A process whose collector looks seldom would grow by some kilobytes with each connection."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        gc.collect()
        gc.disable()
        try:
            for data in (request(b"{}"), request(b"a").replace(b"/predict", b"/other")):
                client = await connect()
                await client.send(data)
                if b"/predict" in data:
                    way, _ = await front.way.next()
                    way.set_result(b"{}")
                    del way
                await client.answer()
                client.writer.close()
            del client
            async with asyncio.timeout(10):
                while any(isinstance(each, PredictProtocol) for each in gc.get_objects()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()

    run(test)


def test_an_error_is_answered_at_once_and_later() -> None:
    """A refused request would hang."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(request(b"refuse"))
        assert (await client.answer())[::2] == (422, b"ValueError")
        await client.send(request(b"{}"))
        way, _ = await front.way.next()
        way.set_exception(KeyError("a"))
        assert (await client.answer())[::2] == (422, b"KeyError")
        await client.send(request(b"{}"))
        way, _ = await front.way.next()
        unspeakable = [{"label": object()}]
        way.set_result(InferenceResponse(to_uuid(bytes(16)), unspeakable, [], 0.0, "1"))
        assert (await client.answer())[::2] == (422, b"TypeError")

    run(test)


def test_a_client_may_end_its_connection_and_so_may_we() -> None:
    """A stopping server would be asked again and again on connections that it wants closed."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(request(b"{}", b"connection: close"))
        (await front.way.next())[0].set_result(b"{}")
        assert (await client.answer())[1][b"connection"] == b"close"
        assert await client.closed()
        client = await connect()
        await client.send(request(b"{}"))
        way, _ = await front.way.next()
        front.stopping = True
        way.set_result(b"{}")
        assert (await client.answer())[1][b"connection"] == b"close"
        assert await client.closed()

    run(test)


def test_who_leaves_is_counted_and_not_answered() -> None:
    """Aborted requests would count as answered, or an answer be written to nobody."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(request(b"{}"))
        way, _ = await front.way.next()
        client.writer.close()
        await until(lambda: way.disconnected)
        assert front.way.counted == []
        way.set_result(b"{}")
        client = await connect()
        await client.send(request(b"{}")[:-1])  # and in the middle of a body
        await asyncio.sleep(0.05)  # else nothing of it may have come; that would prove less, not fail
        client.writer.close()
        await until(lambda: len(front.way.counted) == 2)
        assert front.way.counted == [None, None]

    run(test)


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends half a body would hold its connection for ever."""
    monkeypatch.setattr("serving.http_protocol.BODY_TIMEOUT", 0.01)

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(request(b"{}")[:-1])
        assert (await client.answer())[::2] == (422, b"BodyTooSlow")
        await client.send(b"}")  # too late, and no second answer
        assert front.way.begun == []

    run(test)


def test_only_idle_connections_are_closed() -> None:
    """Connections would pile up for ever, or be cut while a model computes."""

    async def test(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        await client.send(request(b"{}"))
        way, _ = await front.way.next()
        await asyncio.sleep(0.3)  # three times as long as a connection may be idle
        way.set_result(b"{}")
        assert (await client.answer())[0] == 200
        assert await client.closed()

    run(test, keep_alive=0.1)
