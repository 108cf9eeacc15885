"""PredictionService: route -> split -> dispatch -> await -> record. Knows nothing of HTTP."""

import time
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from serving.answer_reader import AnswerReader, LoggedRow, read_again
from serving.catalogue import Catalogue, ServedModel, ServedVersion
from serving.channel import MAX_FRAME, Outcome, Question
from serving.contracts import (
    Held,
    InferenceRequest,
    InferenceResponse,
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
from serving.lane import Settable
from serving.recorder import Payload, PredictionRecord, Recorder
from serving.stored_answer import Sought, StoredAnswer
from serving.tracing import Trace

LOGGED_STATUS: dict[type[Exception], int] = {DeadlineExceeded: 504, ModelError: 500, WorkerLost: 503}
"""Failures that count against a version, with the status they are logged and answered with."""

_MOST_READERS = 1024

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


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A request on its way through the service, with what its transport knows of it."""

    request: InferenceRequest
    id: bytes  # ours: the key of its row in the prediction log
    given: Sought | None  # the client's own id and the body that came with it, where it gave one
    unit: str  # what the version is chosen by
    arrived_us: int  # microseconds since 1970
    event_us: int  # the same of the time that counts as the event's
    started: float  # time.perf_counter() at the request's headers
    role: Role
    timeout: float | None  # seconds, where the client wants an answer earlier than the model's configuration says
    trace: Trace | None = None

    def within(self, configured: float) -> float:
        """Seconds from its headers to its deadline, where the model's configuration says `configured`."""
        return configured if self.timeout is None else min(self.timeout, configured)


class PredictionService:
    """Answers requests with the versions that the catalogue routes them to."""

    def __init__(self, catalogue: Catalogue, dispatcher: Dispatcher, recorder: Recorder, tracker: Tracker) -> None:
        self.catalogue = catalogue
        self._dispatcher = dispatcher
        self.recorder = recorder
        self.tracker = tracker
        self._readers: dict[bytes, AnswerReader] = {}

    def held(self, version: ServedVersion) -> Held:
        """What the workers say of a version.

        Raises:
            NotReady: none of them can answer for it.
        """
        held = self._dispatcher.held(version.key)
        if held is None:
            raise NotReady(f"version {version.version} of model '{version.model_id}' is being loaded")
        return held

    def predict(self, asked: Asked, model: ServedModel, version: ServedVersion, answer: Settable | None = None) -> Any:
        """The answer, an InferenceResponse, once it stands in the prediction log: `answer` is set to it, or a future
        that is returned. It fails with DeadlineExceeded, ModelError, WorkerLost or NotReady; the first three stand in
        the log too.

        Raises:
            ValidationFailed, NotReady, TooManyRequests: the model is not asked.
            WorkerLost: nor now, since workers ended under this very input.
        """
        reader = self._reader(version)
        request = asked.request
        rows = version.schema.encode(request.input_data, model.config.max_rows)
        if len(rows.body) > _MOST_BYTES:  # columns that are left out take room too, so a short body can come to it
            problem = f"{rows.size} rows come to {len(rows.body)} bytes"
            raise ValidationFailed(
                [FieldProblem("input_data", problem, f"at most {_MOST_BYTES} bytes: send fewer rows")]
            )
        parameters = version.schema.parameters(request.parameters, binary=reader.binary, classifier=reader.classifier)
        if request.parameters:
            rows = replace(rows, variant=version.schema.variant(request.input_data, parameters.params))
        sent = time.perf_counter()
        timeout = asked.within(model.config.timeout)
        # Both clocks are the machine's monotonic one; the deadline covers the reading of the body too.
        deadline = time.monotonic() - (sent - asked.started) + timeout
        under_way = _UnderWay(self, asked, version, rows, parameters, reader, sent, timeout)
        question = Question(version.key + rows.variant, rows.size, rows.encoding, deadline, False)
        try:
            model.admission.enter(model.model_id)
            answer = self._dispatcher.ask(question, rows.body, version.key, model.admission, under_way, answer)
        except SwitchyardError as error:
            raise under_way.failed(error) from None
        return answer

    def check_room(self, model: ServedModel, unit: str) -> None:
        """Turn a request away that would be later, and count it against the version that it would have come to.

        Raises:
            TooManyRequests: so many are under way already.
            NotReady: nothing of the model is routed.
        """
        try:
            model.admission.check(model.model_id)
        except TooManyRequests:
            self.tracker.failed(model.choose(unit).entry.slot, 429)
            raise

    def repeat(self, stored: StoredAnswer, asked: Asked, model: ServedModel) -> InferenceResponse | None:
        """The answer that the log has to this very request, without asking the model again and without another row.

        None where the log does not hold all of it, or nobody here can read it: the version that gave it is held no more.
        """
        version = model.versions.get(stored.version)
        if version is None:
            return None
        try:
            reader = self._reader(version)
            size = version.schema.encode(asked.request.input_data, model.config.max_rows).size
            parameters = version.schema.parameters(
                asked.request.parameters, binary=reader.binary, classifier=reader.classifier
            )
        except SwitchyardError:  # asking the model says what is wrong
            return None
        read = read_again(reader, stored, parameters, size)
        if read is None:
            return None
        metadata = {"model_id": version.model_id, "arm": stored.arm, "repeated": True}
        seconds = stored.latency_us / 1e6
        return InferenceResponse(asked.request.request_id, *read, seconds, stored.version, metadata)

    def _reader(self, version: ServedVersion) -> AnswerReader:
        """What reads the version's answers. Raises NotReady."""
        held = self.held(version)
        reader = self._readers.get(version.key)
        if reader is None or reader.held is not held:
            if len(self._readers) >= _MOST_READERS:
                self._readers.clear()
            reader = self._readers[version.key] = AnswerReader(held)
        return reader


class _UnderWay:
    """A prediction that a worker was asked for. Its answer is read, logged and counted as soon as it comes.

    That is done with all answers that came in one piece, and not in the request's own task: so they share one write to
    the log, and no task has to wait for it in a turn of its own.
    """

    __slots__ = ("_asked", "_parameters", "_reader", "_rows", "_sent", "_service", "_timeout", "_version")

    def __init__(
        self,
        service: PredictionService,
        asked: Asked,
        version: ServedVersion,
        rows: Rows,
        parameters: Parameters,
        reader: AnswerReader,
        sent: float,
        timeout: float,
    ) -> None:
        self._service = service
        self._asked = asked
        self._version = version
        self._rows = rows
        self._parameters = parameters
        self._reader = reader
        self._sent = sent  # time.perf_counter()
        self._timeout = timeout

    def read(self, outcome: Outcome, body: bytes) -> InferenceResponse:
        """See Asker."""
        asked, version, rows, service = self._asked, self._version, self._rows, self._service
        back = time.perf_counter()
        predictions, scores, logged = self._reader.read(outcome, body, self._parameters)
        now = time.perf_counter()
        processing_time = now - asked.started
        service.recorder.add(_record(asked, version, 200, processing_time, logged))
        if service.recorder.keeps_payloads:
            service.recorder.add_payload(_payload(asked, version, rows, outcome, body))
        compute = outcome.compute
        queue = max(0.0, back - self._sent - compute)
        stages = Stages(self._sent - asked.started, queue, compute, now - back)
        slot = version.entry.slot
        service.tracker.answered(slot, stages, rows.size, outcome.batch_rows)
        if asked.trace is not None:
            asked.trace.asked(version.version, str(asked.request.request_id), stages)
        metadata = {
            "model_id": version.model_id,
            "arm": None,
            "timings": {"queue": queue, "compute": compute},
            "batch_rows": outcome.batch_rows,
        }
        return InferenceResponse(
            asked.request.request_id, predictions, scores, processing_time, version.version, metadata
        )

    def failed(self, error: Exception) -> Exception:
        """See Asker."""
        service, slot = self._service, self._version.entry.slot
        if isinstance(error, DeadlineExceeded):
            error = DeadlineExceeded(self._version.model_id, self._timeout)
        elif isinstance(error, TooManyRequests):
            service.tracker.failed(slot, 429)
        status = LOGGED_STATUS.get(type(error))
        if status is not None:
            service.tracker.failed(slot, status)
            seconds = time.perf_counter() - self._asked.started
            # Written at the end of this turn of the event loop, before the task that waits has its own.
            service.recorder.add(_record(self._asked, self._version, status, seconds, []))
        if self._asked.trace is not None:
            self._asked.trace.asked(self._version.version, str(self._asked.request.request_id))
        return error


def _record(
    asked: Asked, version: ServedVersion, status: int, seconds: float, rows: list[LoggedRow]
) -> PredictionRecord:
    key, digest = asked.given or (None, None)
    # By position: a record is made for each request, and names cost as much again.
    return PredictionRecord(
        asked.id, key, digest, asked.arrived_us, asked.event_us, version.model_id, version.version, None,
        asked.role.value, asked.request.user_id, int(seconds * 1e6), status, rows,
    )  # fmt: skip


def _payload(asked: Asked, version: ServedVersion, rows: Rows, outcome: Outcome, body: bytes) -> Payload:
    return Payload(
        asked.id, version.model_id, version.version, rows.size, rows.encoding, rows.body, rows.variant,
        outcome.encoding, outcome.width, body,
    )  # fmt: skip


def client_key(model_id: str, given: str, body: bytes) -> Sought:
    """A client's own id of a request as the log's key, and the digest of the body it came with."""
    key = blake2b(f"{model_id}\0{given}".encode(), digest_size=16).digest()
    return Sought(key, blake2b(body, digest_size=16).digest())
