"""The outermost layer: every HTTP request is answered here; of LitServe's application only the lifespan is used."""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from structlog.contextvars import bind_contextvars

from serving.agent_link import AgentLink
from serving.answers import Answer, refusal, status_of
from serving.catalogue import Catalogue
from serving.channel import version_key
from serving.dispatch import Dispatcher
from serving.endpoint import InferenceEndpoint
from serving.errors import InternalError, MethodNotAllowed, NotReady, PathNotFound, SwitchyardError
from serving.idempotency import RememberedAnswers
from serving.ids import PredictionIds
from serving.intake import ClientLeft, Headers, Receive, RequestIds, given_id, given_timeout, read_json_body
from serving.logs import logger
from serving.metrics import CONTENT_TYPE as METRICS_TYPE
from serving.metrics import Metrics
from serving.model_metrics import SlotMetrics
from serving.prediction import PredictionService
from serving.recorder import Recorder
from serving.version_gauges import VersionGauges

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

PREDICT = "/ml/models/{model_id}/predict"
FIXED = ("/health/live", "/health/ready", "/v2", "/v2/health/live", "/v2/health/ready", "/metrics")
V2_MODEL = "/v2/models/{model_id}"
V2_VERSION = "/v2/models/{model_id}/versions/{version}"
UNKNOWN_PATH = "(unknown)"
TEMPLATES = (
    *FIXED, PREDICT,
    V2_MODEL, f"{V2_MODEL}/ready", f"{V2_MODEL}/infer",
    V2_VERSION, f"{V2_VERSION}/ready", f"{V2_VERSION}/infer",
    UNKNOWN_PATH,
)  # fmt: skip
"""The routes, as metrics and answers name them."""

PING_DEADLINE = 0.8
"""Seconds a worker has to answer: under the 1 s that probes wait by default, so that they get our answer."""

_PREDICT_PATH = re.compile(r"/ml/models/([^/]+)/predict")
_V2_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_LEFT = 499

log = logger(__name__)


class Request(NamedTuple):
    """What a handler needs of a request."""

    path: str
    model_id: str
    version: str | None
    headers: Headers
    receive: Receive
    id: str
    started: float  # time.perf_counter()


class Place(NamedTuple):
    """Where a path leads."""

    template: str
    model_id: str
    version: str | None


Handler = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True)
class FrontOptions:
    """What an HTTP process is given by its parent."""

    slot: int  # this process's number, which its metrics and its spool are kept under
    worker_addresses: list[str]  # the spare's last
    agent_address: str
    replica_folder: Path
    max_body_bytes: int
    spool_max_bytes: int  # of this process
    log_payloads: bool


class HttpFront:
    """An ASGI application around LitServe's. One lives in each HTTP process; make it in the parent, before the fork."""

    def __init__(self, app: AsgiApp, *, options: FrontOptions, metrics: Metrics, slot_metrics: SlotMetrics) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._slot_metrics = slot_metrics
        self._recorder = metrics.recorder(options.slot)
        self._pen = slot_metrics.pen(options.slot)
        self._new_id = RequestIds()
        self._stopping = False
        self._catalogue = Catalogue()
        self._endpoints: dict[str, InferenceEndpoint] = {}
        # Made when the process's event loop runs, see _live_with_the_process.
        self._dispatcher: Dispatcher | None = None
        self._service: PredictionService | None = None
        self._answers: RememberedAnswers | None = None
        self._ids = PredictionIds()
        read = ("GET", "HEAD")
        self._routes: dict[str, tuple[tuple[str, ...], Handler]] = {
            "/health/live": (read, self._live),
            "/health/ready": (read, self._ready),
            "/v2": (read, self._v2_server),
            "/v2/health/live": (read, self._v2_live),
            "/v2/health/ready": (read, self._v2_ready),
            "/metrics": (read, self._show_metrics),
            PREDICT: (("POST",), self._predict),
        }
        for base in (V2_MODEL, V2_VERSION):
            self._routes[base] = (read, self._v2_metadata)
            self._routes[f"{base}/ready"] = (read, self._v2_model_ready)
            self._routes[f"{base}/infer"] = (("POST",), self._v2_infer)

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
        options = self._options
        self._pen.forget_under_way()
        self._dispatcher = Dispatcher(options.worker_addresses, self._recorder.workers_connected, self._pen.event)
        log_of_predictions = Recorder(
            options.replica_folder / "spool" / f"api-{options.slot}",
            max_bytes=options.spool_max_bytes,
            payloads=options.log_payloads,
            on_dropped=lambda stream, count: self._pen.event(f"{stream}_dropped", count),
        )
        self._service = PredictionService(self._catalogue, self._dispatcher, log_of_predictions, self._pen)
        self._answers = RememberedAnswers()
        gauges = VersionGauges.started(self._catalogue, self._pen)
        link = AgentLink(options.agent_address, options.replica_folder / "table.json", self._catalogue, gauges.follow)
        await self._dispatcher.start()
        await link.start()
        try:
            await self._app(scope, receive, send)
        finally:
            await link.close()
            await self._dispatcher.close()
            log_of_predictions.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        place = _locate(scope["path"])
        headers = scope["headers"]
        request_id = given_id(headers) or self._new_id()
        request = Request(scope["path"], place.model_id, place.version, headers, receive, request_id, started)
        # Each request is a task with a context of its own, so nothing has to be unbound.
        bind_contextvars(request_id=request_id)
        try:
            answer = await self._outcome(place.template, scope["method"], request)
            await self._send(send, answer, request_id)
            status = answer.status
        except ClientLeft:
            status = _LEFT
        self._recorder.observe(place.template, scope["method"], status, time.perf_counter() - started)

    async def _outcome(self, template: str, method: str, request: Request) -> Answer:
        """The handler's answer, or that of what it raised."""
        try:
            return await self._handler(template, method, request.path)(request)
        except ClientLeft:
            raise
        except Exception as error:
            if isinstance(error, SwitchyardError) and status_of(error) is not None:
                return refusal(error)
            log.exception("request failed unexpectedly", route=template)
            return refusal(InternalError(request.id))

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
        models = [
            {"model_id": name, "ready": not self._missing(name), "versions": sorted(model.versions)}
            for name, model in sorted(self._catalogue.models.items())
        ]
        return Answer(200, orjson.dumps({"status": "ready", "workers": dispatcher.workers(), "models": models}))

    async def _v2_ready(self, _request: Request) -> Answer:
        await self._answering()
        return Answer(200, b'{"ready":true}')

    async def _v2_server(self, _request: Request) -> Answer:
        return Answer(200, b'{"name":"switchyard","version":"2","extensions":[]}')

    async def _answering(self) -> Dispatcher:
        """The dispatcher, once a worker has answered it just now and some model can be served. Raises NotReady."""
        if self._stopping:
            raise NotReady("the server is stopping")
        if self._dispatcher is None or not await self._dispatcher.ping(PING_DEADLINE):
            raise NotReady("no worker answers")
        if self._catalogue.generation is None:
            raise NotReady("it is not known yet which models are served")
        routed = [name for name, model in self._catalogue.models.items() if model.splitter is not None]
        missing = [name for name in routed if self._missing(name)]
        # One model that cannot be served is no reason to take the others out of service.
        if routed and len(missing) == len(routed):
            raise NotReady(f"no model is loaded yet, of {', '.join(sorted(missing))}")
        return self._dispatcher

    def _missing(self, model_id: str) -> list[str]:
        """The routed versions of a model that no worker holds."""
        assert self._dispatcher is not None  # noqa: S101 (for the type checker; requests come after the start)
        weights = self._catalogue.models[model_id].routes
        return [each.version for each in weights if not self._dispatcher.held(version_key(model_id, each.version))]

    async def _show_metrics(self, _request: Request) -> Answer:
        names = {
            version.entry.slot: (version.model_id, version.version)
            for model in self._catalogue.models.values()
            for version in model.versions.values()
        }
        lines = "\n".join(self._slot_metrics.lines(names)) + "\n"
        return Answer(200, self._metrics.render() + lines.encode(), METRICS_TYPE)

    async def _predict(self, request: Request) -> Answer:
        body = await read_json_body(request.headers, request.receive, self._options.max_body_bytes)
        endpoint = self._endpoint(request.model_id)
        return await endpoint.predict(body, request.started, given_timeout(request.headers))

    async def _v2_metadata(self, request: Request) -> Answer:
        return self._endpoint(request.model_id).metadata(request.version)

    async def _v2_model_ready(self, request: Request) -> Answer:
        return self._endpoint(request.model_id).ready(request.version)

    async def _v2_infer(self, request: Request) -> Answer:
        body = await read_json_body(request.headers, request.receive, self._options.max_body_bytes)
        endpoint = self._endpoint(request.model_id)
        return await endpoint.infer(body, request.version, request.started, given_timeout(request.headers))

    def _endpoint(self, model_id: str) -> InferenceEndpoint:
        """Raises ModelNotFound, NotReady."""
        if self._service is None or self._answers is None:
            raise NotReady("the server is starting")
        if model_id not in self._endpoints or model_id not in self._catalogue.models:
            self._catalogue.get(model_id)  # else names that anybody may invent would be kept
            self._endpoints[model_id] = InferenceEndpoint(model_id, self._service, self._answers, self._ids)
        return self._endpoints[model_id]


def _locate(path: str) -> Place:
    """The template that a path belongs to, and the model and version it names."""
    found = _PREDICT_PATH.fullmatch(path)
    if found:
        return Place(PREDICT, found[1], None)
    if path in FIXED:
        return Place(path, "", None)
    found = _V2_PATH.fullmatch(path)
    if found:
        base = V2_MODEL if found[2] is None else V2_VERSION
        return Place(base + (found[3] or ""), found[1], found[2])
    return Place(UNKNOWN_PATH, "", None)
