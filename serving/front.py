"""The outermost layer: every HTTP request is answered here; of LitServe's application only the lifespan is used."""

import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from serving.agent_link import AgentLink
from serving.answers import Answer, headers_of, refusal, status_of
from serving.catalogue import Catalogue
from serving.dispatch import Dispatcher
from serving.endpoint import Answers, Asking, InferenceEndpoint
from serving.errors import InternalError, MethodNotAllowed, NotReady, PathNotFound, SwitchyardError
from serving.http_protocol import SHORT_BODY, ShortWay
from serving.idempotency import RememberedAnswers
from serving.ids import PredictionIds, to_text
from serving.intake import ClientLeft, Receive, Said, given_timeout, has_left, read_headers, read_json_body
from serving.kept_answers import KeptAnswers
from serving.logged_answers import LoggedAnswers
from serving.logs import logger, request_of_the_log
from serving.metrics import CONTENT_TYPE as METRICS_TYPE
from serving.metrics import Metrics
from serving.model_metrics import SlotMetrics
from serving.places import PREDICT, PREDICTIONS, UNKNOWN_PATH, V2_MODEL, V2_VERSION, Place, locate
from serving.prediction import PredictionService
from serving.readiness import Readiness
from serving.recorder import Recorder
from serving.short_way import PredictWay
from serving.tracing import Spot, Trace, Traces
from serving.version_gauges import VersionGauges

if TYPE_CHECKING:  # its libraries are for those who want it, see _exporter
    from serving.span_export import SpanExporter

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_LEFT = 499

log = logger(__name__)


class Request(NamedTuple):
    """What a handler needs of a request."""

    model_id: str
    version: str | None
    said: Said
    receive: Receive
    asking: Asking


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
    log_predictions: bool
    log_payloads: bool
    otlp_endpoint: str  # empty: no spans are sent
    trace_sample_ratio: float


class HttpFront:
    """An ASGI application around LitServe's. One lives in each HTTP process; make it in the parent, before the fork."""

    def __init__(self, app: AsgiApp, *, options: FrontOptions, metrics: Metrics, slot_metrics: SlotMetrics) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._slot_metrics = slot_metrics
        self._recorder = metrics.recorder(options.slot)
        self._pen = slot_metrics.pen(options.slot)
        self.short_ways: dict[bytes, ShortWay] = {}
        self.short_body = min(SHORT_BODY, options.max_body_bytes)
        """Both: see serving/http_protocol.py."""
        self.stopping = False
        self._catalogue = Catalogue()
        self._endpoints: dict[str, InferenceEndpoint] = {}
        # Made when the process's event loop runs, see _live_with_the_process.
        self._readiness: Readiness | None = None
        self._service: PredictionService | None = None
        self._answers: Answers | None = None
        self._traces = Traces()
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
        if scope["type"] != "http":
            await self._live_with_the_process(scope, receive, send)
            return
        started = time.perf_counter()
        path, method = scope["path"], scope["method"]
        place = locate(path)
        said = read_headers(scope["headers"])
        own_id = self._ids()
        own_text = to_text(own_id)
        request_id = said.request_id or own_text
        trace = None
        if said.traceparent or self._traces.begins:
            trace = self._trace_of(said, scope, place)
        # Each request is a task with a context of its own, so nothing has to be unbound.
        request_of_the_log.set(request_id if trace is None else trace.named(request_id))
        answer: Answer | None = None
        try:
            asking = Asking(own_id, own_text, started, given_timeout(said.timeout), trace)
            handler = self._handler(place.template, method, path)
            answer = await handler(Request(place.model_id, place.version, said, receive, asking))
        except ClientLeft:
            pass
        except Exception as error:  # noqa: BLE001  # it is logged where it is none of ours
            answer = self._refusal(error, place.template, request_id)
        status = _LEFT
        if answer is not None and not has_left(receive):
            # A new list each time: what sits between us and the socket may append to it.
            headers = headers_of(answer, request_id, None if trace is None else trace.header, closing=self.stopping)
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})
            status = answer.status
        seconds = time.perf_counter() - started
        self._recorder.observe(place.template, method, status, seconds)
        if trace is not None:
            trace.end(None if status == _LEFT else status, seconds)

    def stop(self) -> None:
        """From now on each answer asks its client to connect elsewhere, and readiness is refused."""
        self.stopping = True

    async def _live_with_the_process(self, scope: Scope, receive: Receive, send: Send) -> None:
        options = self._options
        self._pen.forget_under_way()
        log_of_predictions = Recorder(
            options.replica_folder / "spool" / f"api-{options.slot}",
            max_bytes=options.spool_max_bytes,
            predictions=options.log_predictions,
            payloads=options.log_payloads,
            on_dropped=lambda stream, count: self._pen.event(f"{stream}_dropped", count),
        )
        dispatcher = Dispatcher(
            options.worker_addresses, self._recorder.workers_connected, self._pen.event, log_of_predictions.flush
        )
        self._service = PredictionService(self._catalogue, dispatcher, log_of_predictions, self._pen)
        self._readiness = Readiness(self._catalogue, dispatcher)
        gauges = VersionGauges.started(self._catalogue, self._pen)
        link = AgentLink(options.agent_address, options.replica_folder / "table.json", self._catalogue, gauges.follow)
        kept = KeptAnswers(options.replica_folder / "answers", options.slot)
        self._answers = Answers(RememberedAnswers(), kept, _logged_answers(link) if options.log_predictions else None)
        exporter = self._exporter()
        self._traces = Traces(exporter, options.trace_sample_ratio)
        async with AsyncExitStack() as closing:  # the last one first
            if exporter is not None:
                closing.callback(exporter.close)
            closing.callback(kept.close)
            closing.callback(log_of_predictions.close)
            closing.push_async_callback(dispatcher.close)
            closing.push_async_callback(link.close)

            async def send_when_closed(message: MutableMapping[str, Any]) -> None:
                # uvicorn waits for this message and for nothing behind it: after a signal the process ends with it.
                if message["type"].startswith("lifespan.shutdown."):
                    await closing.aclose()
                await send(message)

            await dispatcher.start()
            await link.start()
            await self._app(scope, receive, send_when_closed)

    def _refusal(self, error: Exception, template: str, request_id: str) -> Answer:
        """The answer to what a handler raised."""
        if isinstance(error, SwitchyardError) and status_of(error) is not None:
            return refusal(error)
        log.error("request failed unexpectedly", route=template, exc_info=error)  # called by its handler
        return refusal(InternalError(request_id))

    def _refuse_predict(self, error: Exception, request_id: str) -> Answer:
        return self._refusal(error, PREDICT, request_id)

    def _count_predict(self, status: int | None, seconds: float) -> None:
        self._recorder.observe(PREDICT, "POST", _LEFT if status is None else status, seconds)

    def _trace_of(self, said: Said, scope: Scope, place: Place) -> Trace | None:
        """What the request is part of. Only predictions begin a trace where there is none."""
        route = "" if place.template == UNKNOWN_PATH else place.template
        spot = Spot(scope["method"], route, scope["path"], place.model_id)
        may_begin = place.template in PREDICTIONS
        return self._traces.of(said.traceparent, spot, scope["headers"], may_begin=may_begin)

    def _exporter(self) -> "SpanExporter | None":
        """What takes the spans, working; None where nobody wants them: then nothing of it is imported."""
        options = self._options
        if not options.otlp_endpoint:
            return None
        from serving.span_export import SpanExporter

        exporter = SpanExporter(
            options.otlp_endpoint,
            lambda count: self._pen.event("spans_dropped", count),
            instance=f"{socket.gethostname()}:{os.getpid()}",
        )
        exporter.start()
        return exporter

    def _handler(self, template: str, method: str, path: str) -> Handler:
        route = self._routes.get(template)
        if route is None:
            raise PathNotFound(path, sorted(self._routes))
        allowed, handler = route
        if method not in allowed:
            raise MethodNotAllowed(method, list(allowed))
        return handler

    async def _live(self, _request: Request) -> Answer:
        return Answer(200, b'{"status":"live"}')

    async def _v2_live(self, _request: Request) -> Answer:
        return Answer(200, b'{"live":true}')

    async def _ready(self, _request: Request) -> Answer:
        readiness = await self._checked()
        return Answer(200, orjson.dumps(readiness.described()))

    async def _v2_ready(self, _request: Request) -> Answer:
        await self._checked()
        return Answer(200, b'{"ready":true}')

    async def _v2_server(self, _request: Request) -> Answer:
        return Answer(200, b'{"name":"switchyard","version":"2","extensions":[]}')

    async def _checked(self) -> Readiness:
        """What is said of it once it is ready. Raises NotReady."""
        if self.stopping:
            raise NotReady("the server is stopping")
        if self._readiness is None:
            raise NotReady("the server is starting")
        await self._readiness.check()
        return self._readiness

    async def _show_metrics(self, _request: Request) -> Answer:
        names = {
            version.entry.slot: (version.model_id, version.version)
            for model in self._catalogue.models.values()
            for version in model.versions.values()
        }
        lines = "\n".join(self._slot_metrics.lines(names)) + "\n"
        return Answer(200, self._metrics.render() + lines.encode(), METRICS_TYPE)

    async def _predict(self, request: Request) -> Answer:
        body = await read_json_body(request.said, request.receive, self._options.max_body_bytes)
        return await self._endpoint(request.model_id).predict(body, request.asking)

    async def _v2_metadata(self, request: Request) -> Answer:
        return self._endpoint(request.model_id).metadata(request.version, request.asking.text)

    async def _v2_model_ready(self, request: Request) -> Answer:
        return self._endpoint(request.model_id).ready(request.version, request.asking.text)

    async def _v2_infer(self, request: Request) -> Answer:
        body = await read_json_body(request.said, request.receive, self._options.max_body_bytes)
        return await self._endpoint(request.model_id).infer(body, request.version, request.asking)

    def _endpoint(self, model_id: str) -> InferenceEndpoint:
        """Raises ModelNotFound, NotReady."""
        if self._service is None or self._answers is None:
            raise NotReady("the server is starting")
        if model_id not in self._endpoints or model_id not in self._catalogue.models:
            self._catalogue.get(model_id)  # else names that anybody may invent would be kept
            self._endpoints[model_id] = InferenceEndpoint(model_id, self._service, self._answers)
            self.short_ways[PREDICT.format(model_id=model_id).encode()] = PredictWay(
                self._endpoints[model_id], self._ids, self._refuse_predict, self._count_predict, self._traces, PREDICT
            )
        return self._endpoints[model_id]


def _logged_answers(link: AgentLink) -> LoggedAnswers:
    logged = LoggedAnswers(link.send)
    link.on_found(logged.take, logged.lost)
    return logged
