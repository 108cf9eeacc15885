"""The outermost layer: no web page reaches this server through a browser, every request has an id and is counted."""

import time
import uuid
from collections.abc import Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.errors import response
from control_plane.api.metrics import Metrics
from control_plane.errors import ForeignHost, ForeignOrigin
from control_plane.settings import Settings
from serving.errors import SwitchyardError, WrongContentType
from serving.logs import logger, working_on

log = logger(__name__)

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """Checks Host, Origin and content type before anything else looks at a request."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = _LOCAL | {settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            # Browsers ask nobody before they open one to another site, so it is held to the same rules.
            refused = why_refused("GET", headers, self._hosts, self._origins)
            await (send({"type": "websocket.close", "code": 1008}) if refused else self._app(scope, receive, send))
            return
        request_id = _request_id(headers.get("x-request-id"))
        started = time.perf_counter()
        status = [500]

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        with working_on(request_id=request_id):
            try:
                refusal = why_refused(scope["method"], headers, self._hosts, self._origins)
                answer = response(refusal) if refusal else self._app
                await answer(scope, receive, send_marked)
            finally:
                self._note(scope, status[0], time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _template(scope)
        self._metrics.observe(route, scope["method"], status, seconds)
        write = log.info if status >= 400 or scope["method"] not in _READS else log.debug
        write("request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))


def why_refused(
    method: str, headers: Headers, hosts: Collection[str], origins: Collection[str]
) -> SwitchyardError | None:
    """The reason not to answer; None when there is none.

    A page of another site can make a browser send requests here: under its own host name (DNS rebinding), or as a
    form post, which needs no permission as long as it does not claim to be JSON.
    """
    host = headers.get("host", "")
    if _host_name(host) not in hosts:
        return ForeignHost(host)
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in origins and _place(origin) != host.lower():
        return ForeignOrigin(origin)
    if method not in _READS and _media_type(headers) != "application/json":
        return WrongContentType(headers.get("content-type", ""))
    return None


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """Host and port of an origin; None where it is no address at all."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").split(";")[0].strip().lower()


def _request_id(given: str | None) -> str:
    """The caller's id where it is a UUID, so that nobody writes into our log through it; else a new one."""
    try:
        return str(uuid.UUID(given)) if given else str(uuid.uuid4())
    except ValueError:
        return str(uuid.uuid4())


def _template(scope: MutableMapping[str, Any]) -> str:
    """The route's template: names in the path would make a time series each."""
    return getattr(scope.get("route"), "path", "(none)")
