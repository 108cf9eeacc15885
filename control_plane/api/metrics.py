"""The control plane's own figures, for Prometheus."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from control_plane.api.errors import documented
from control_plane.services import Services
from control_plane.storage.aliases import pending_aliases
from control_plane.storage.routes import read_generation
from serving.errors import DatabaseUnavailable

router = APIRouter(tags=["operations"])


class Metrics:
    """Counters of one process, and gauges that are read when Prometheus asks."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "switchyard_control_plane_requests",
            "Requests answered.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "switchyard_control_plane_request_seconds",
            "Seconds from a request's arrival to its answer.",
            ["route"],
            registry=self._registry,
        )
        self._database_up = Gauge(
            "switchyard_database_up", "1 when the database can be used, else 0.", registry=self._registry
        )
        self._generation = Gauge(
            "switchyard_route_generation", "Grows with every write of routes.", registry=self._registry
        )
        self._pending = Gauge(
            "switchyard_alias_projections_pending", "Aliases that MLflow does not show yet.", registry=self._registry
        )

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request. `route` is a template, `seconds` a duration."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self, services: Services) -> bytes:
        """The text Prometheus reads. A database that is down is a figure, not a failure."""
        try:
            with services.database.reading() as session:
                self._generation.set(read_generation(session))
                self._pending.set(len(pending_aliases(session)))
            self._database_up.set(1)
        except DatabaseUnavailable:
            self._database_up.set(0)
        return generate_latest(self._registry)


@router.get(
    "/metrics",
    summary="Figures of the control plane in the text format of Prometheus",
    response_class=Response,
    responses={
        **documented(),
        200: {"description": "The figures.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
def read_metrics(request: Request) -> Response:
    """Requests by route and status with their durations, the database's state, pending work."""
    text = request.app.state.metrics.render(request.app.state.services)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
