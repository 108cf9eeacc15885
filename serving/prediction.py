"""PredictionService: route -> split -> dispatch -> await -> record. Knows nothing of HTTP."""

import time
from hashlib import blake2b
from typing import NamedTuple, Protocol

from serving.answer_reader import AnswerReader, LoggedRow
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
from serving.recorder import Payload, PredictionRecord, Recorder

LOGGED_STATUS: dict[type[SwitchyardError], int] = {DeadlineExceeded: 504, ModelError: 500, WorkerLost: 503}
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

    def under_way(self, slot: int, count: int) -> None:
        """Calls of the version's model under way now."""
        ...


class Asked(NamedTuple):
    """A request on its way through the service, with what its transport knows of it."""

    request: InferenceRequest
    id: bytes  # ours: the key of its row in the prediction log
    given: tuple[bytes, bytes] | None  # the client's own id as a key, and the digest of the body it came with
    arrived_us: int  # microseconds since 1970
    event_us: int  # the same of the time that counts as the event's
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

    async def predict(self, asked: Asked, model: ServedModel, version: ServedVersion) -> InferenceResponse:
        """The answer, once it stands in the prediction log.

        Raises:
            ValidationFailed, NotReady, TooManyRequests: the model was not asked.
            DeadlineExceeded, ModelError, WorkerLost: it was, and this stands in the log too.
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
            rows = rows._replace(variant=version.schema.variant(request.input_data, parameters.params))
        sent = time.perf_counter()

        def read(outcome: Outcome, body: bytes) -> InferenceResponse:
            return self._answered(asked, version, rows, parameters, reader, sent, outcome, body)

        timeout = asked.within(model.config.timeout)
        # Both clocks are the machine's monotonic one; the deadline covers the reading of the body too.
        deadline = time.monotonic() - (sent - asked.started) + timeout
        admission, slot = model.admission, version.entry.slot
        try:
            admission.enter(model.model_id)
            self._tracker.under_way(slot, admission.under_way)
            question = Question(version.key + rows.variant, rows.size, rows.encoding, deadline, False)
            response: InferenceResponse = await self._dispatcher.ask(question, rows.body, version.key, admission, read)
        except DeadlineExceeded as error:
            late = DeadlineExceeded(model.model_id, timeout)
            await self._note_failure(asked, version, late)
            raise late from error
        except SwitchyardError as error:
            await self._note_failure(asked, version, error)
            raise
        finally:
            self._tracker.under_way(slot, admission.under_way)
        return response

    def _reader(self, version: ServedVersion) -> AnswerReader:
        """What reads the version's answers. Raises NotReady."""
        held = self.held(version)
        reader = self._readers.get(version.key)
        if reader is None or reader.held is not held:
            if len(self._readers) >= _MOST_READERS:
                self._readers.clear()
            reader = self._readers[version.key] = AnswerReader(held)
        return reader

    def _answered(
        self,
        asked: Asked,
        version: ServedVersion,
        rows: Rows,
        parameters: Parameters,
        reader: AnswerReader,
        sent: float,
        outcome: Outcome,
        body: bytes,
    ) -> InferenceResponse:
        """The response, and its place in the log and in the metrics. The log is written before it goes anywhere.

        It is called by the dispatcher with all that came in one piece, and not by the request's own task: so they
        share one write to the log, and no task has to wait for it in a turn of its own.
        """
        back = time.perf_counter()
        predictions, scores, logged = reader.read(outcome, body, parameters)
        now = time.perf_counter()
        processing_time = now - asked.started
        self._record(asked, version, 200, processing_time, logged)
        self._record_payload(asked, version, rows, outcome, body)
        compute = outcome.compute
        queue = max(0.0, back - sent - compute)
        self._tracker.answered(
            version.entry.slot, Stages(sent - asked.started, queue, compute, now - back), rows.size, outcome.batch_rows
        )
        metadata = {
            "model_id": version.model_id,
            "arm": None,
            "timings": {"queue": queue, "compute": compute},
            "batch_rows": outcome.batch_rows,
        }
        return InferenceResponse(
            asked.request.request_id, predictions, scores, processing_time, version.version, metadata
        )

    async def _note_failure(self, asked: Asked, version: ServedVersion, error: SwitchyardError) -> None:
        if isinstance(error, TooManyRequests):
            self._tracker.failed(version.entry.slot, 429)
        status = LOGGED_STATUS.get(type(error))
        if status is not None:
            self._tracker.failed(version.entry.slot, status)
            self._record(asked, version, status, time.perf_counter() - asked.started, [])
            await self._recorder.durable()

    def _record(
        self, asked: Asked, version: ServedVersion, status: int, seconds: float, rows: list[LoggedRow]
    ) -> None:
        key, digest = asked.given or (None, None)
        self._recorder.add(
            PredictionRecord(
                id=asked.id,
                client_key=key,
                body_digest=digest,
                arrived_us=asked.arrived_us,
                event_us=asked.event_us,
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


def client_key(model_id: str, given: str, body: bytes) -> tuple[bytes, bytes]:
    """A client's own id of a request as the log's key, and the digest of the body it came with."""
    key = blake2b(f"{model_id}\0{given}".encode(), digest_size=16).digest()
    return key, blake2b(body, digest_size=16).digest()
