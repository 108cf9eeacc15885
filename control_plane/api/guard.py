"""The outermost layer: no web page reaches this server through a browser, every request has an id and is counted.

It also reads the body of each write, within its limits: what stands above has it at once.
"""

import time
import uuid
from collections.abc import Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.body import ClientLeft, read_body, replaying
from control_plane.api.errors import response
from control_plane.api.metrics import Metrics
from control_plane.errors import ForeignHost, ForeignOrigin
from control_plane.settings import Settings
from serving.errors import BodyTooLarge, BodyTooSlow, SwitchyardError, WrongContentType
from serving.logs import logger, working_on

log = logger(__name__)

# What may change something. Other methods than these and the reads are nowhere answered but with 405.
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_LEFT = 499
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
        self._limit = settings.max_body_bytes
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
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = [500]

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                # An answer that was passed through has an id already, its own.
                named = any(name == b"x-request-id" for name, _ in message["headers"])
                ours = _HEADERS if named else [*_HEADERS, (b"x-request-id", request_id.encode())]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        with working_on(request_id=request_id):
            try:
                refusal = why_refused(scope["method"], headers, self._hosts, self._origins)
                if refusal is None and scope["method"] in _WRITES:
                    receive, refusal = await self._with_body(headers, receive)
                answer = response(refusal) if refusal else self._app
                await answer(scope, receive, send_marked)
            except ClientLeft:
                status[0] = _LEFT
            finally:
                self._note(scope, status[0], time.perf_counter() - started)

    async def _with_body(self, headers: Headers, receive: Receive) -> tuple[Receive, SwitchyardError | None]:
        try:
            return replaying(await read_body(headers, receive, self._limit), receive), None
        except (BodyTooLarge, BodyTooSlow) as error:
            return receive, error

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _template(scope)
        self._metrics.observe(route, scope["method"], status, seconds)
        write = log.info if status >= 400 or scope["method"] in _WRITES else log.debug
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
    if method in _WRITES and not _is_json(_media_type(headers)):
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


def _is_json(kind: str) -> bool:
    """As the data plane sees it. No page can claim any of these without asking first."""
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


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
