"""Predict requests of one model from the connection to its endpoint, without a task of their own."""

from collections.abc import Callable

from serving.answers import Answer
from serving.endpoint import Asking, InferenceEndpoint
from serving.http_protocol import Short
from serving.ids import PredictionIds
from serving.intake import given_timeout
from serving.logs import request_of_the_log


class PredictWay:
    """A ShortWay (serving/http_protocol.py)."""

    def __init__(
        self,
        endpoint: InferenceEndpoint,
        ids: PredictionIds,
        refuse: Callable[[Exception, str], Answer],
        count: Callable[[int | None, float], None],
    ) -> None:
        """`refuse`: an error and the request's id as an answer; `count`: the status, None without one, and seconds."""
        self._endpoint = endpoint
        self._refuse = refuse
        self.new_id = ids
        self.ended = count

    def begin(self, way: Short, body: bytes) -> None:
        """See ShortWay. Raises what the endpoint raises at once."""
        # Other requests are served in the same context, so what is set here is taken back.
        token = request_of_the_log.set(way.request_id)
        try:
            asking = Asking(way.id, way.text, way.started, given_timeout(way.said.timeout))
            self._endpoint.begin(body, asking, way)
        finally:
            request_of_the_log.reset(token)

    def refusal(self, way: Short, error: Exception) -> Answer:
        """See ShortWay."""
        token = request_of_the_log.set(way.request_id)
        try:
            return self._refuse(error, way.request_id)
        finally:
            request_of_the_log.reset(token)
