"""From a batch to the frames that answer it: the one place where a worker calls a model for a request."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import orjson

from serving.batching import Answered, Batch, Fault, OutOfTimeError, Sender, Waiting, answer_all
from serving.channel import MAX_FRAME, Kind, Outcome, pack
from serving.contracts import Encoding
from serving.engines import Predicted
from serving.loader import LoadedModel, Piece, piece
from serving.model_files import words_of
from serving.model_input import Raw

_ROOM = MAX_FRAME - 1024  # what is left of a frame without its headers
_LONGEST = 300

Reply = tuple[Sender, bytes]
"""Who asked, and the frame that answers."""


def run_batch(
    batch: Batch[Sender], model: LoadedModel, variant: bytes, busy: Callable[[], None]
) -> list[Reply[Sender]]:
    """A frame for each request of the batch; not for the expired ones, see `refuse_expired`.

    Args:
        batch: of one version, that of `model`.
        model: what answers.
        variant: what the batch's key says beyond the version.
        busy: called before each call of the model.
    """
    requests = batch.requests
    sizes = [each.question.rows for each in requests]
    started = time.monotonic()
    try:
        raw = model.read(batch.encoding, [each.body for each in requests], sizes)
    except Exception as problem:  # noqa: BLE001  # one of them is not what it says: alone each shows whether it is the one
        if len(requests) == 1:
            return [(requests[0].sender, _failed(requests[0], Fault(None, problem)))]
        return _run_apart(batch, [[each] for each in requests], model, variant, busy)
    alike = _alike(requests, raw, model)
    if len(alike) > 1:
        return _run_apart(batch, alike, model, variant, busy)

    def call(first: int, last: int) -> Predicted:
        return model.answer_rows(raw if last - first == len(raw) else raw[first:last], variant, busy)

    outcomes = answer_all(sizes, call, lambda each: time.monotonic() < requests[each].question.deadline)
    compute = time.monotonic() - started
    whole: dict[int, bytes] = {}
    return [
        (request.sender, _frame(request, outcome, started, compute, len(raw), whole))
        for request, outcome in zip(requests, outcomes, strict=True)
    ]


def _run_apart(
    batch: Batch[Sender],
    groups: Iterable[list[Waiting[Sender]]],
    model: LoadedModel,
    variant: bytes,
    busy: Callable[[], None],
) -> list[Reply[Sender]]:
    apart = [Batch(batch.key, batch.encoding, each, []) for each in groups]
    return [reply for each in apart for reply in run_batch(each, model, variant, busy)]


def _alike(requests: list[Waiting[Sender]], raw: Raw, model: LoadedModel) -> list[list[Waiting[Sender]]]:
    """The requests in groups of those whose rows may share a table."""
    if len(requests) == 1 or model.may_share(raw):
        return [requests]
    groups: dict[Any, list[Waiting[Sender]]] = {}
    start = 0
    for each in requests:
        groups.setdefault(model.dtypes_of(raw[start : start + each.question.rows]), []).append(each)
        start += each.question.rows
    return list(groups.values())


def refuse_expired(requests: list[Waiting[Sender]]) -> list[Reply[Sender]]:
    """The frames for requests whose deadline has passed before anything was computed."""
    return [(each.sender, _failed(each, Fault(None, OutOfTimeError()))) for each in requests]


def refuse_unknown(requests: list[Waiting[Sender]]) -> list[Reply[Sender]]:
    """The frames for requests to a version that is not held here, or not any more."""
    return [(each.sender, failure(each.id, "VersionNotLoaded")) for each in requests]


def failure(id: int, error: str, row: int | None = None, exception: str = "", problem: str = "") -> bytes:
    """A FAILURE frame."""
    said = {"error": error, "row": row, "exception": exception, "problem": problem}
    return pack(Kind.FAILURE, id, orjson.dumps(said))


def _frame(
    request: Waiting[Sender],
    outcome: Answered[Predicted] | Fault,
    started: float,
    compute: float,
    rows: int,
    whole: dict[int, bytes],
) -> bytes:
    if isinstance(outcome, Fault):
        return _failed(request, outcome)
    size = request.question.rows
    try:
        encoding, width, body = _piece(outcome, size, whole)
    except Exception as problem:  # noqa: BLE001  # a generic model may answer with objects that JSON cannot carry
        return _failed(request, Fault(None, problem))
    if len(body) > _ROOM:
        return failure(request.id, "ModelError", None, "AnswerTooLarge", f"its answer has {len(body)} bytes")
    waited = started - request.arrived
    return Outcome(waited, compute, rows, size, width, encoding).pack(request.id, body)


def _piece(outcome: Answered[Predicted], size: int, whole: dict[int, bytes]) -> Piece:
    answers, start = outcome.answers, outcome.start
    if not isinstance(answers, np.ndarray):
        return piece(answers[start : start + size])
    # Made into bytes once for all requests of the call, and cut there: cheaper than cutting the array for each.
    packed = whole.get(id(answers))
    if packed is None:
        packed = whole[id(answers)] = answers.astype("<f8", copy=False).tobytes()
    width = answers.shape[1]
    return Piece(Encoding.FLOATS, width, packed[start * width * 8 : (start + size) * width * 8])


def _failed(request: Waiting[Sender], fault: Fault) -> bytes:
    if isinstance(fault.problem, OutOfTimeError):
        return failure(request.id, "DeadlineExceeded")
    lines = words_of(fault.problem).strip().splitlines()
    said = lines[0][:_LONGEST] if lines else ""
    return failure(request.id, "ModelError", fault.row, type(fault.problem).__name__, said)
