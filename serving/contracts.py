"""The shapes of a prediction: what is asked, what is answered, and how a model is served. Pure."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, TypedDict
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field


class ModelKind(StrEnum):
    """What a model answers; decides the shape of its predictions."""

    CLASSIFIER = "classifier"  # {"label", "probabilities"}
    REGRESSOR = "regressor"  # {"value"}
    GENERIC = "generic"  # {"value"}: whatever a generic pyfunc returns for a row


class Role(StrEnum):
    """Why a prediction was made."""

    ANSWER = "answer"  # a client asked, and got it
    SHADOW = "shadow"  # scored beside the answer, and shown to nobody
    PROBE = "probe"  # our own question, or one to a version by name: left out of usage and quality


class Encoding(IntEnum):
    """How rows or predictions travel between processes."""

    FLOATS = 0  # float64, little-endian, row after row
    JSON = 1  # a JSON list with one element per row


# Structs where one is made for each request: a NamedTuple takes four times as long.
class Rows(msgspec.Struct, frozen=True, gc=False):
    """The rows of one request, validated, as they travel to a worker.

    Against a signature of columns each row has the columns in the signature's order: FLOATS where all of them are
    numbers (a missing optional one is NaN), else JSON, a list of lists (a missing optional one is null).
    """

    size: int
    encoding: Encoding
    body: bytes
    variant: bytes  # JSON of what must be equal within a batch: {"params": {...}, "columns": [...]}; empty for nothing


class Parameters(msgspec.Struct, frozen=True, gc=False):
    """The known `parameters` of a request."""

    threshold: float | None  # of a binary classifier: probability of the second class from which it is the label
    return_probabilities: bool
    params: dict[str, Any]  # the signature's own params


class Stages(msgspec.Struct, frozen=True, gc=False):
    """Where the time of one answer went, in seconds."""

    validate: float
    queue: float  # on the way to the model and back, all but computing
    compute: float  # of the whole batch
    encode: float


class Compilation(TypedDict):
    """Whether a version answers by its compiled form (see serving.compiled), and what was found when it was tried.

    Times are microseconds per call, medians; all figures are 0 where it did not come to that.
    """

    used: bool
    reason: str  # for a person: what was compared, or why it is not used
    rows: int  # that both forms answered
    max_difference: float  # between two probabilities, or between values relative to those beyond 1
    native_us_1: float  # one row
    compiled_us_1: float
    native_us_64: float  # 64 rows
    compiled_us_64: float


@dataclass(frozen=True, slots=True)
class Held:
    """A version that a worker can answer for, as it says itself. Travels as JSON in HOLDS and REPORT frames."""

    model_id: str
    version: str
    digest: str
    kind: ModelKind
    classes: list[Any]  # of a classifier, in the order of its probabilities; JSON values
    probabilities: bool  # whether each row of its answer carries a probability per class
    engine: str  # what computes, such as "sklearn" or "pyfunc"
    reason: str  # why that engine
    load_seconds: float
    warmup_seconds: list[float]  # of each warm-up prediction, in order
    memory_mb: float  # what the process grew by
    compilation: Compilation | None = None  # None where nobody has tried


class ModelServingConfig(BaseModel):
    """How one model is served. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_path: str = Field("", description="Folder that the serving version is loaded from. Follows from its digest.")
    model_version: str = Field("", description="The version with the largest share of traffic. Promote to change it.")
    batch_size: int = Field(64, ge=1, le=10_000, description="Rows that one call of the model takes at most.")
    max_concurrent_requests: int = Field(
        256, ge=1, le=1_000_000, description="Requests of this model in one HTTP process at once; beyond it 429."
    )
    timeout: int = Field(30, ge=1, le=3600, description="Seconds until a request without an answer gets 504.")
    warmup_requests: int = Field(
        5, ge=0, le=10_000, description="Predictions that a version makes after loading, before it counts as ready."
    )
    health_check_interval: int = Field(
        30, ge=1, le=86_400, description="Seconds between two probes of the model through the real path."
    )
    performance_threshold: float = Field(
        0.0,
        allow_inf_nan=False,
        description="Minimum of the model's primary quality metric: a version below it is not promoted.",
    )
    compiled: bool = Field(
        default=True,
        description="Whether a version may answer by its compiled form, where that was found to answer the same, faster.",
    )
    max_rows: int = Field(1000, ge=1, le=1_000_000, description="Rows that one request may carry.")
    client_timestamps: bool = Field(
        default=False,
        description="Whether a request's own timestamp is its event time; else its arrival is.",
    )


# Not frozen, like the answer below: one is made for each request, and that costs a third so.
@dataclass(slots=True)
class InferenceRequest:
    """One question to a model: one record, or columns of equal length."""

    request_id: UUID
    model_id: str
    input_data: dict[str, Any]
    parameters: dict[str, Any]
    timestamp: datetime  # UTC: event time
    user_id: str | None = None


@dataclass(slots=True)
class InferenceResponse:
    """The answer: one prediction per row, in the rows' order."""

    request_id: UUID
    predictions: list[dict[str, Any]]
    confidence_scores: list[float]  # probability of each row's label; empty where the model gives none
    processing_time: float  # seconds, from the request's headers to its answer
    model_version: str
    metadata: dict[str, Any] = field(default_factory=dict)
