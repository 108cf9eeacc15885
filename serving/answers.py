"""What goes back to a client: answers, and errors as answers with their status."""

import msgspec
import orjson

from serving.contracts import InferenceResponse
from serving.errors import (
    BodyTooLarge,
    BodyTooSlow,
    DeadlineExceeded,
    InternalError,
    MethodNotAllowed,
    ModelError,
    ModelNotFound,
    ModelNotLoadable,
    NotJson,
    NotReady,
    PathNotFound,
    RequestIdReused,
    SwitchyardError,
    TooManyRequests,
    ValidationFailed,
    VersionNotLoaded,
    WorkerLost,
    WrongContentType,
)

STATUS_OF: dict[type[SwitchyardError], int] = {
    NotJson: 400,
    ModelNotFound: 404,
    VersionNotLoaded: 404,
    PathNotFound: 404,
    MethodNotAllowed: 405,
    BodyTooSlow: 408,
    BodyTooLarge: 413,
    WrongContentType: 415,
    ValidationFailed: 422,
    RequestIdReused: 422,
    TooManyRequests: 429,
    InternalError: 500,
    ModelError: 500,
    NotReady: 503,
    WorkerLost: 503,
    ModelNotLoadable: 503,
    DeadlineExceeded: 504,
}
"""The one table from what went wrong to the answer's status; a subclass that is not in it has its parent's."""


CLOSE = (b"connection", b"close")


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a handler returns."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def headers_of(
    answer: Answer, request_id: str, traceparent: bytes | None, *, closing: bool
) -> list[tuple[bytes, bytes]]:
    """The headers of a response. `closing`: the connection ends with it, whatever the answer itself says of that."""
    headers = [
        (b"content-type", answer.content_type),
        (b"content-length", b"%d" % len(answer.body)),
        (b"x-request-id", request_id.encode()),
        *answer.headers,
    ]
    if traceparent is not None:
        headers.append((b"traceparent", traceparent))
    if closing and CLOSE not in answer.headers:
        headers.append(CLOSE)
    return headers


def write_response(response: InferenceResponse) -> bytes:
    """The JSON of an answer. Raises TypeError where a model's label is nothing that JSON can carry."""
    return orjson.dumps(  # of a dict: of the dataclass itself it takes twice as long
        {
            "request_id": response.request_id,
            "predictions": response.predictions,
            "confidence_scores": response.confidence_scores,
            "processing_time": response.processing_time,
            "model_version": response.model_version,
            "metadata": response.metadata,
        }
    )


def status_of(error: BaseException) -> int | None:
    """The status of an error; None when it is none that a client is told of."""
    return next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), None)


def refusal(error: SwitchyardError) -> Answer:
    """An error as an answer. It must have a status."""
    status = status_of(error)
    if status is None:
        raise LookupError(type(error).__name__) from error
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, TooManyRequests):
        headers = ((b"retry-after", b"%d" % error.retry_after),)
    elif status == 503:
        headers = ((b"retry-after", b"1"),)
    elif isinstance(error, MethodNotAllowed):
        headers = ((b"allow", ", ".join(error.allowed).encode()),)
    elif isinstance(error, BodyTooLarge | BodyTooSlow):
        headers = (CLOSE,)  # what is still to come of the body is not waited for
    return Answer(status, orjson.dumps(error.body()), headers=headers)
