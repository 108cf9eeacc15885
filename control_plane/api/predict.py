"""Predict and the Open Inference Protocol V2, passed through to the data plane byte for byte."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.dependencies import PRINTABLE, ModelId, ServicesOf
from control_plane.api.errors import WITH_BODY, documented
from control_plane.errors import DataPlaneUnreachable
from serving.errors import (
    DeadlineExceeded,
    ModelError,
    ModelNotFound,
    ModelNotLoadable,
    NotReady,
    RequestIdReused,
    SwitchyardError,
    TooManyRequests,
    ValidationFailed,
    VersionNotLoaded,
)

router = APIRouter(tags=["predict"])


class InferenceRequest(BaseModel):
    """One question to a model: one record, or columns of equal length."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"input_data": {"temp": 41.0, "carrier": "UA"}},
                {
                    "input_data": {"temp": [41.0, 38.5], "carrier": ["UA", "DL"]},
                    "request_id": "0192d7a4-6f1e-7c3b-9a55-0242ac120002",
                    "parameters": {"return_probabilities": False},
                    "user_id": "ada",
                },
            ]
        },
    )

    input_data: dict[str, Any] = Field(
        description="A value for each column of the signature, or a list for each, all of one length."
    )
    request_id: UUID | None = Field(
        None, description="Yours: sent again with the same body it gets the same answer. Else one is made."
    )
    parameters: dict[str, Any] | None = Field(
        None, description="threshold, return_probabilities, and those of the signature."
    )
    timestamp: datetime | None = Field(
        None, description="Event time, where the model's client_timestamps allows it; else the time of arrival."
    )
    user_id: str | None = Field(None, description="Whoever it is for stays with one version while traffic is split.")


class InferenceResponse(BaseModel):
    """The answer: one prediction per row, in the rows' order."""

    model_config = ConfigDict(
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "request_id": "0192d7a4-6f1e-7c3b-9a55-0242ac120002",
                    "predictions": [{"label": 1, "probabilities": {"0": 0.2, "1": 0.8}}],
                    "confidence_scores": [0.8],
                    "processing_time": 0.0031,
                    "model_version": "3",
                    "metadata": {"model_id": "flights", "arm": None, "timings": {"queue": 0.0004, "compute": 0.0019}},
                }
            ]
        },
    )

    request_id: UUID
    predictions: list[dict[str, Any]] = Field(
        description='{"label", "probabilities"} of a classifier, {"value"} of any other.'
    )
    confidence_scores: list[float] = Field(
        description="Probability of each row's label; empty where the model gives none."
    )
    processing_time: float = Field(description="Seconds from the request's headers to its answer.")
    model_version: str
    metadata: dict[str, Any]


class ServerMetadata(BaseModel):
    """Who answers."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    model_config = ConfigDict(extra="allow")

    name: str
    versions: list[str]
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class TensorBody(BaseModel):
    """One named input or output."""

    model_config = ConfigDict(extra="allow")

    name: str
    shape: list[int]
    datatype: str = Field(examples=["FP64"])
    data: list[Any]


class InferRequest(BaseModel):
    """A question in the words of the protocol: an input for each column, or one tensor."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {"name": "temp", "shape": [2], "datatype": "FP64", "data": [41.0, 38.5]},
                        {"name": "carrier", "shape": [2], "datatype": "BYTES", "data": ["UA", "DL"]},
                    ]
                }
            ]
        }
    )

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[TensorBody]
    outputs: list[dict[str, Any]] | None = None


class InferResponse(BaseModel):
    """The answer in the words of the protocol."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[TensorBody]


_UNANSWERED = (NotReady, ModelNotLoadable, DataPlaneUnreachable)
_OF_MODEL = (ModelNotFound, ValidationFailed, *_UNANSWERED)
_OF_VERSION = (*_OF_MODEL, VersionNotLoaded)
_ASKING = (*_OF_MODEL, *WITH_BODY, RequestIdReused, TooManyRequests, ModelError, DeadlineExceeded)


async def _model(model_id: ModelId) -> None:
    """Documents the parameter; the data plane reads it."""


async def _version(version: Annotated[str, Path(max_length=100, pattern=PRINTABLE, examples=["3"])]) -> None:
    """As above."""


async def _deadline(
    x_request_timeout: Annotated[str | None, Header(description="Seconds after which no answer is wanted.")] = None,
) -> None:
    """As above."""


def _body(schema: type[BaseModel]) -> dict[str, Any]:
    """The documentation of a body that is not read here, only passed on."""
    described = schema.model_json_schema()
    inner = described.pop("$defs", {})
    for name, each in inner.items():
        described["properties"] = _inlined(described["properties"], name, each)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": described}}}}


def _inlined(value: Any, name: str, definition: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if str(value.get("$ref", "")).endswith(name):
            return definition
        return {key: _inlined(each, name, definition) for key, each in value.items()}
    return [_inlined(each, name, definition) for each in value] if isinstance(value, list) else value


async def _passed_through(request: Request, services: ServicesOf) -> Response:
    target = request.scope.get("raw_path") or request.url.path.encode()
    query = request.scope["query_string"]
    answer = await services.data_plane.forward(
        request.method,
        target + b"?" + query if query else target,
        request.headers.raw,
        await request.body(),
        request.state.request_id,
    )
    passed = Response(answer.body, answer.status)
    # Response makes headers of its own of the body; of a HEAD there is none, and the data plane said its type itself.
    passed.raw_headers = [(b"content-length", str(len(answer.body)).encode()), *answer.headers]
    return passed


def _pass(
    path: str,
    summary: str,
    description: str,
    errors: tuple[type[SwitchyardError], ...],
    answer: type[BaseModel] | None = None,
    asked: type[BaseModel] | None = None,
) -> None:
    """Pass a path through, and document it: `asked` is the schema of its body, `answer` that of its 200."""
    documents = [("{model_id}", _model), ("{version}", _version)]
    dependencies = [Depends(each) for name, each in documents if name in path]
    router.add_api_route(
        path,
        _passed_through,
        methods=["POST" if asked else "GET"],
        summary=summary,
        description=description,
        dependencies=[*dependencies, Depends(_deadline)] if asked else dependencies,
        responses={200: {"model": answer} if answer else {"description": "Yes."}, **documented(*errors)},
        openapi_extra=_body(asked) if asked else None,
    )


_pass(
    "/ml/models/{model_id}/predict",
    "Predict",
    "The data plane's own answer, whatever it is; it answers the same on its own address, faster.",
    _ASKING,
    answer=InferenceResponse,
    asked=InferenceRequest,
)
_pass("/v2", "Who answers", "Open Inference Protocol V2: metadata of the server.", _UNANSWERED, answer=ServerMetadata)
_pass("/v2/health/live", "Does the data plane answer?", "Open Inference Protocol V2: liveness.", _UNANSWERED)
_pass("/v2/health/ready", "Can the data plane predict?", "Open Inference Protocol V2: readiness.", _UNANSWERED)
for _place, _what, _errors in (
    ("/v2/models/{model_id}", "a model, by the version that the routes choose", _OF_MODEL),
    ("/v2/models/{model_id}/versions/{version}", "one loaded version, routed or not", _OF_VERSION),
):
    _protocol = f"Open Inference Protocol V2, of {_what}."
    _pass(_place, "What a model takes and gives", _protocol, _errors, answer=ModelMetadata)
    _pass(f"{_place}/ready", "Can a model predict?", _protocol, _errors)
    _pass(
        f"{_place}/infer",
        "Predict, in the words of the protocol",
        _protocol,
        (*_ASKING, *_errors),
        answer=InferResponse,
        asked=InferRequest,
    )
# What else there is below /v2, and by which methods, is for the data plane to say.
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
router.add_api_route("/v2", _passed_through, methods=_METHODS, include_in_schema=False)
router.add_api_route("/v2/{rest:path}", _passed_through, methods=_METHODS, include_in_schema=False)
