"""Predict requests of one model from the connection to its endpoint, without a task of their own."""

from collections.abc import Callable

from serving.answers import Answer
from serving.endpoint import Asking, InferenceEndpoint
from serving.http_protocol import Short
from serving.ids import PredictionIds
from serving.intake import Headers, Said, given_timeout
from serving.logs import request_of_the_log
from serving.tracing import Spot, Trace, Traces


class PredictWay:
    """A ShortWay (serving/http_protocol.py)."""

    def __init__(
        self,
        endpoint: InferenceEndpoint,
        ids: PredictionIds,
        refuse: Callable[[Exception, str], Answer],
        count: Callable[[int | None, float], None],
        traces: Traces,
        route: str,
    ) -> None:
        """`refuse`: an error and the request's id as an answer; `count`: the status, None without one, and seconds.

        `route` is the template that traces name it by.
        """
        self._endpoint = endpoint
        self._traces = traces
        self._route = route
        self.begins_traces = traces.begins
        self._refuse = refuse
        self.new_id = ids
        self.ended = count

    def trace_of(self, said: Said, url: bytes, headers: Headers) -> Trace | None:
        """See ShortWay."""
        spot = Spot("POST", self._route, url.decode("latin-1"), self._endpoint.model_id)
        return self._traces.of(said.traceparent, spot, headers)

    def begin(self, way: Short, body: bytes) -> None:
        """See ShortWay. Raises what the endpoint raises at once."""
        # Other requests are served in the same context, so what is set here is taken back.
        token = request_of_the_log.set(way.named)
        try:
            asking = Asking(way.id, way.text, way.started, given_timeout(way.said.timeout), way.trace)
            self._endpoint.begin(body, asking, way)
        finally:
            request_of_the_log.reset(token)

    def refusal(self, way: Short, error: Exception) -> Answer:
        """See ShortWay."""
        token = request_of_the_log.set(way.named)
        try:
            return self._refuse(error, way.request_id)
        finally:
            request_of_the_log.reset(token)
