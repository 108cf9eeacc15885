"""PredictionService: route -> split -> dispatch -> await -> record. Knows nothing of HTTP."""

import struct
import time
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import orjson

from serving.catalogue import Catalogue, ServedModel, ServedVersion
from serving.channel import MAX_FRAME, Outcome, Question
from serving.contracts import (
    Encoding,
    Held,
    InferenceRequest,
    InferenceResponse,
    ModelKind,
    Parameters,
    Role,
    Rows,
    Stages,
)
from serving.dispatch import Dispatcher
from serving.errors import (
    DeadlineExceeded,
    FieldProblem,
    ModelError,
    NotReady,
    SwitchyardError,
    TooManyRequests,
    ValidationFailed,
    WorkerLost,
)
from serving.recorder import Payload, PredictionRecord, Recorder

LOGGED_STATUS: dict[type[SwitchyardError], int] = {DeadlineExceeded: 504, ModelError: 500, WorkerLost: 503}
"""Failures that count against a version, with the status they are logged and answered with."""


_MOST_BYTES = MAX_FRAME - 64 * 1024
"""Of rows as they travel to a worker: what comes around them takes less than the rest."""


class Tracker(Protocol):
    """Who counts what happens to requests of a version, by its slot."""

    def answered(self, slot: int, stages: Stages, rows: int, batch_rows: int) -> None:
        """One answer."""
        ...

    def failed(self, slot: int, status: int) -> None:
        """A failure that counts against the version, or a request that was turned away (429)."""
        ...

    def under_way(self, slot: int, count: int) -> None:
        """Calls of the version's model under way now."""
        ...


class Asked(NamedTuple):
    """A request on its way through the service, with what its transport knows of it."""

    request: InferenceRequest
    id: bytes  # ours: the key of its row in the prediction log
    given: tuple[bytes, bytes] | None  # the client's own id as a key, and the digest of the body it came with
    arrived_us: int  # microseconds since 1970
    started: float  # time.perf_counter() at the request's headers
    role: Role
    timeout: float | None  # seconds, where the client wants an answer earlier than the model's configuration says

    def within(self, configured: float) -> float:
        """Seconds from its headers to its deadline, where the model's configuration says `configured`."""
        return configured if self.timeout is None else min(self.timeout, configured)


class PredictionService:
    """Answers requests with the versions that the catalogue routes them to."""

    def __init__(self, catalogue: Catalogue, dispatcher: Dispatcher, recorder: Recorder, tracker: Tracker) -> None:
        self.catalogue = catalogue
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._tracker = tracker

    def held(self, version: ServedVersion) -> Held:
        """What the workers say of a version.

        Raises:
            NotReady: none of them can answer for it.
        """
        held = self._dispatcher.held(version.key)
        if held is None:
            raise NotReady(f"version {version.version} of model '{version.model_id}' is being loaded")
        return held

    async def predict(self, asked: Asked, model: ServedModel, version: ServedVersion) -> InferenceResponse:
        """The answer, once it stands in the prediction log.

        Raises:
            ValidationFailed, NotReady, TooManyRequests: the model was not asked.
            DeadlineExceeded, ModelError, WorkerLost: it was, and this stands in the log too.
        """
        held = self.held(version)
        request = asked.request
        rows = version.schema.encode(request.input_data, model.config.max_rows)
        if len(rows.body) > _MOST_BYTES:  # columns that are left out take room too, so a short body can come to it
            problem = f"{rows.size} rows come to {len(rows.body)} bytes"
            raise ValidationFailed(
                [FieldProblem("input_data", problem, f"at most {_MOST_BYTES} bytes: send fewer rows")]
            )
        parameters = _parameters(version, held, request.parameters)
        if request.parameters:
            rows = rows._replace(variant=version.schema.variant(request.input_data, parameters.params))
        return await self.ask(asked, model, version, rows, parameters)

    async def ask(
        self, asked: Asked, model: ServedModel, version: ServedVersion, rows: Rows, parameters: Parameters
    ) -> InferenceResponse:
        """As `predict`, from rows that are validated."""
        held = self.held(version)
        sent = time.perf_counter()
        slot = version.entry.slot
        try:
            outcome, body = await self._answer(asked, model, version, rows)
        except SwitchyardError as error:
            await self._note_failure(asked, version, error)
            raise
        back = time.perf_counter()
        predictions, scores, logged = _read(outcome, body, held, parameters)
        processing_time = time.perf_counter() - asked.started
        self._record(asked, version, 200, processing_time, logged)
        self._record_payload(asked, version, rows, outcome, body)
        await self._recorder.durable()
        queue = max(0.0, back - sent - outcome.compute)
        stages = Stages(sent - asked.started, queue, outcome.compute, time.perf_counter() - back)
        self._tracker.answered(slot, stages, rows.size, outcome.batch_rows)
        metadata = {
            "model_id": version.model_id,
            "arm": None,
            "timings": {"queue": queue, "compute": outcome.compute},
            "batch_rows": outcome.batch_rows,
        }
        return InferenceResponse(
            asked.request.request_id, predictions, scores, processing_time, version.version, metadata
        )

    async def _answer(
        self, asked: Asked, model: ServedModel, version: ServedVersion, rows: Rows
    ) -> tuple[Outcome, bytes]:
        timeout = asked.within(model.config.timeout)
        # Both clocks are the machine's monotonic one; the deadline covers the reading of the body too.
        deadline = time.monotonic() - (time.perf_counter() - asked.started) + timeout
        model.admission.enter(model.model_id)
        self._tracker.under_way(version.entry.slot, model.admission.under_way)
        question = Question(version.key + rows.variant, rows.size, rows.encoding, deadline, solo=False)
        try:
            return await self._dispatcher.ask(question, rows.body, version.key, model.admission)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(model.model_id, timeout) from error
        finally:
            self._tracker.under_way(version.entry.slot, model.admission.under_way)

    async def _note_failure(self, asked: Asked, version: ServedVersion, error: SwitchyardError) -> None:
        if isinstance(error, TooManyRequests):
            self._tracker.failed(version.entry.slot, 429)
        status = LOGGED_STATUS.get(type(error))
        if status is not None:
            self._tracker.failed(version.entry.slot, status)
            self._record(asked, version, status, time.perf_counter() - asked.started, [])
            await self._recorder.durable()

    def _record(
        self, asked: Asked, version: ServedVersion, status: int, seconds: float, rows: list["LoggedRow"]
    ) -> None:
        key, digest = asked.given or (None, None)
        self._recorder.add(
            PredictionRecord(
                id=asked.id,
                client_key=key,
                body_digest=digest,
                arrived_us=asked.arrived_us,
                event_us=_microseconds(asked.request.timestamp),
                model_id=version.model_id,
                version=version.version,
                arm=None,
                role=asked.role.value,
                unit=asked.request.user_id,
                latency_us=int(seconds * 1e6),
                status=status,
                rows=rows,
            )
        )

    def _record_payload(self, asked: Asked, version: ServedVersion, rows: Rows, outcome: Outcome, body: bytes) -> None:
        self._recorder.add_payload(
            Payload(
                id=asked.id,
                model_id=version.model_id,
                version=version.version,
                rows=rows.size,
                encoding=rows.encoding,
                features=rows.body,
                variant=rows.variant,
                answer_encoding=outcome.encoding,
                answer_width=outcome.width,
                answer=body,
            )
        )


LoggedRow = tuple[float | None, str | None, float | None]
"""Value, label where it is no number, and the probability of that label."""


def client_key(model_id: str, given: str, body: bytes) -> tuple[bytes, bytes]:
    """A client's own id of a request as the log's key, and the digest of the body it came with."""
    key = blake2b(f"{model_id}\0{given}".encode(), digest_size=16).digest()
    return key, blake2b(body, digest_size=16).digest()


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6)


def _parameters(version: ServedVersion, held: Held, given: dict[str, Any]) -> Parameters:
    classifier = held.kind is ModelKind.CLASSIFIER
    binary = classifier and len(held.classes) == 2 and held.probabilities
    return version.schema.parameters(given, binary=binary, classifier=classifier)


def _read(
    outcome: Outcome, body: bytes, held: Held, parameters: Parameters
) -> tuple[list[dict[str, Any]], list[float], list[LoggedRow]]:
    """Predictions and scores as they are answered, and as they are logged."""
    if outcome.encoding is Encoding.JSON:
        values = orjson.loads(body)
        return [{"value": value} for value in values], [], [_logged(value) for value in values]
    numbers = struct.unpack(f"<{len(body) // 8}d", body)
    width = outcome.width
    lines = [numbers[at : at + width] for at in range(0, outcome.rows * width, width)]
    if held.kind is ModelKind.CLASSIFIER:
        return _read_classes(lines, held, parameters)
    values = [line[0] for line in lines] if width == 1 else [list(line) for line in lines]
    return [{"value": value} for value in values], [], [_logged(value) for value in values]


def _read_classes(
    lines: list[tuple[float, ...]], held: Held, parameters: Parameters
) -> tuple[list[dict[str, Any]], list[float], list[LoggedRow]]:
    names = [_class_name(each) for each in held.classes]
    predictions: list[dict[str, Any]] = []
    scores: list[float] = []
    logged: list[LoggedRow] = []
    for line in lines:
        index = int(line[0])
        if parameters.threshold is not None:
            index = int(line[2] >= parameters.threshold)
        label = held.classes[index]
        prediction: dict[str, Any] = {"label": label}
        score = None
        if held.probabilities:
            score = line[1 + index]
            scores.append(score)
            if parameters.return_probabilities:
                prediction["probabilities"] = dict(zip(names, line[1:], strict=True))
        predictions.append(prediction)
        value, text, _ = _logged(label)
        logged.append((value, text, score))
    return predictions, scores, logged


def _class_name(label: Any) -> str:
    """As a key of JSON: true, not Python's True."""
    return label if isinstance(label, str) else orjson.dumps(label).decode()


def _logged(value: Any) -> LoggedRow:
    if isinstance(value, bool | int | float):
        number = float(value)
        return (number if number - number == 0 else None), None, None  # neither NaN nor infinite
    return None, value if isinstance(value, str) else None, None
