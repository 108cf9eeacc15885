"""The outermost layer: every HTTP request is answered here; of LitServe's application only the lifespan is used."""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

import orjson
from structlog.contextvars import bind_contextvars

from serving.dispatch import Dispatcher
from serving.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InternalError,
    MethodNotAllowed,
    ModelNotFound,
    NotJson,
    NotReady,
    PathNotFound,
    SwitchyardError,
    WrongContentType,
)
from serving.intake import ClientLeft, Headers, Receive, RequestIds, given_id, read_json_body
from serving.logs import logger
from serving.metrics import CONTENT_TYPE as METRICS_TYPE
from serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

STATUS_OF: dict[type[SwitchyardError], int] = {
    NotJson: 400,
    ModelNotFound: 404,
    PathNotFound: 404,
    MethodNotAllowed: 405,
    BodyTooSlow: 408,
    BodyTooLarge: 413,
    WrongContentType: 415,
    InternalError: 500,
    NotReady: 503,
}
"""The one table from what went wrong to the answer's status."""

PREDICT = "/ml/models/{model_id}/predict"
FIXED = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics")
UNKNOWN_PATH = "(unknown)"
TEMPLATES = (*FIXED, PREDICT, UNKNOWN_PATH)
"""The routes, as metrics and answers name them."""

PING_DEADLINE = 0.8
"""Seconds a worker has to answer: under the 1 s that probes wait by default, so that they get our answer."""

_PREDICT_PATH = re.compile(r"/ml/models/([^/]+)/predict")
_LEFT = 499

log = logger(__name__)


class Request(NamedTuple):
    """What a handler needs of a request."""

    path: str
    model_id: str
    headers: Headers
    receive: Receive


class Answer(NamedTuple):
    """What a handler returns."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Request], Awaitable[Answer]]


class HttpFront:
    """An ASGI application around LitServe's. One lives in each HTTP process; make it in the parent, before the fork."""

    def __init__(self, app: AsgiApp, *, addresses: list[str], metrics: Metrics, slot: int, max_body_bytes: int) -> None:
        """`addresses` of the workers' sockets; `slot` is this process's number, which its metrics are kept under."""
        self._app = app
        self._addresses = addresses
        self._metrics = metrics
        self._recorder = metrics.recorder(slot)
        self._max_body_bytes = max_body_bytes
        self._dispatcher: Dispatcher | None = None
        self._new_id = RequestIds()
        self._stopping = False
        read = ("GET", "HEAD")
        self._routes: dict[str, tuple[tuple[str, ...], Handler]] = {
            "/health/live": (read, self._live),
            "/health/ready": (read, self._ready),
            "/v2/health/live": (read, self._v2_live),
            "/v2/health/ready": (read, self._v2_ready),
            "/metrics": (read, self._show_metrics),
            PREDICT: (("POST",), self._predict),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or accompany the process's life. uvicorn is told to know no web sockets."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._live_with_the_process(scope, receive, send)

    def stop(self) -> None:
        """From now on each answer asks its client to connect elsewhere, and readiness is refused."""
        self._stopping = True

    async def _live_with_the_process(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._dispatcher = Dispatcher(self._addresses, self._recorder.workers_connected)
        await self._dispatcher.start()
        try:
            await self._app(scope, receive, send)
        finally:
            await self._dispatcher.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        template, model_id = _locate(scope["path"])
        request = Request(scope["path"], model_id, scope["headers"], receive)
        request_id = given_id(request.headers) or self._new_id()
        # Each request is a task with a context of its own, so nothing has to be unbound.
        bind_contextvars(request_id=request_id)
        try:
            answer = await self._outcome(template, scope["method"], request, request_id)
            await self._send(send, answer, request_id)
            status = answer.status
        except ClientLeft:
            status = _LEFT
        self._recorder.observe(template, scope["method"], status, time.perf_counter() - started)

    async def _outcome(self, template: str, method: str, request: Request, request_id: str) -> Answer:
        """The handler's answer, or that of what it raised."""
        try:
            return await self._handler(template, method, request.path)(request)
        except ClientLeft:
            raise
        except Exception as error:
            if isinstance(error, SwitchyardError) and type(error) in STATUS_OF:
                return _refusal(error)
            log.exception("request failed unexpectedly", route=template)
            return _refusal(InternalError(request_id))

    def _handler(self, template: str, method: str, path: str) -> Handler:
        route = self._routes.get(template)
        if route is None:
            raise PathNotFound(path, sorted(self._routes))
        allowed, handler = route
        if method not in allowed:
            raise MethodNotAllowed(method, list(allowed))
        return handler

    async def _send(self, send: Send, answer: Answer, request_id: str) -> None:
        # A new list each time: what sits between us and the socket may append to it.
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(answer.body)),
            (b"x-request-id", request_id.encode()),
            *answer.headers,
        ]
        if self._stopping:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _live(self, _request: Request) -> Answer:
        return Answer(200, b'{"status":"live"}')

    async def _v2_live(self, _request: Request) -> Answer:
        return Answer(200, b'{"live":true}')

    async def _ready(self, _request: Request) -> Answer:
        dispatcher = await self._answering()
        return Answer(200, orjson.dumps({"status": "ready", "workers": dispatcher.workers(), "models": []}))

    async def _v2_ready(self, _request: Request) -> Answer:
        await self._answering()
        return Answer(200, b'{"ready":true}')

    async def _answering(self) -> Dispatcher:
        """The dispatcher, once a worker has answered it just now. Raises NotReady."""
        if self._stopping:
            raise NotReady("the server is stopping")
        if self._dispatcher is None or not await self._dispatcher.ping(PING_DEADLINE):
            raise NotReady("no worker answers")
        return self._dispatcher

    async def _show_metrics(self, _request: Request) -> Answer:
        return Answer(200, self._metrics.render(), METRICS_TYPE)

    async def _predict(self, request: Request) -> Answer:
        body = await read_json_body(request.headers, request.receive, self._max_body_bytes)
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError as problem:
            raise NotJson(str(problem)) from problem
        raise ModelNotFound(request.model_id, known=[])


def _locate(path: str) -> tuple[str, str]:
    """The template that a path belongs to, and the model it names."""
    if path in FIXED:
        return path, ""
    found = _PREDICT_PATH.fullmatch(path)
    return (PREDICT, found[1]) if found else (UNKNOWN_PATH, "")


def _refusal(error: SwitchyardError) -> Answer:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, NotReady):
        headers = ((b"retry-after", b"1"),)
    elif isinstance(error, MethodNotAllowed):
        headers = ((b"allow", ", ".join(error.allowed).encode()),)
    elif isinstance(error, BodyTooLarge | BodyTooSlow):
        headers = ((b"connection", b"close"),)  # what is still to come of the body is not waited for
    return Answer(STATUS_OF[type(error)], orjson.dumps(error.body()), headers=headers)
