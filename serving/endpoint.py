"""InferenceEndpoint: HTTP in, HTTP out, for one model, in our own form and in that of the Open Inference Protocol."""

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec
import orjson

from serving import open_inference
from serving.answers import Answer, write_response
from serving.catalogue import ServedModel, ServedVersion
from serving.contracts import InferenceRequest, Role
from serving.errors import DeadlineExceeded, NotReady, RequestIdReused
from serving.idempotency import RememberedAnswers
from serving.ids import to_uuid
from serving.kept_answers import KeptAnswers
from serving.lane import Settable
from serving.logged_answers import LoggedAnswers
from serving.prediction import Asked, PredictionService, client_key
from serving.request_body import read_request
from serving.stored_answer import Sought
from serving.tracing import Trace

_CHANCE = -12  # from here on an id of ours is random


class Asking(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request apart from its path and body."""

    id: bytes  # ours, of this request alone
    text: str  # the same
    started: float  # time.perf_counter() at its headers
    patience: float | None  # the client's, in seconds, where it says
    trace: Trace | None = None


class Answers(NamedTuple):
    """Where the answer to a client's request id may be, in the order they are asked."""

    remembered: RememberedAnswers  # of this process, ten minutes
    kept: KeptAnswers  # of this data plane's HTTP processes, on disk
    logged: LoggedAnswers | None  # in the database; None where nothing is logged


class InferenceEndpoint:
    """One model of the catalogue, which may serve several versions of it."""

    def __init__(self, model_id: str, service: PredictionService, answers: Answers) -> None:
        self.model_id = model_id
        self._service = service
        self._answers = answers.remembered
        self._kept = answers.kept
        self._logged = answers.logged
        self._tasks: set[asyncio.Task[bytes]] = set()

    async def predict(self, body: bytes, asking: Asking) -> Answer:
        """Answer `POST .../predict`.

        Raises:
            NotJson, ValidationFailed, RequestIdReused, ModelNotFound: the request's fault.
            NotReady, TooManyRequests, DeadlineExceeded, ModelError, WorkerLost: see PredictionService.
        """
        asked, model = self._read(body, asking)
        if asked.given is None:
            return Answer(200, write_response(await self._ask(asked, model)))
        return Answer(200, await self._once(asked, asked.given, model))

    def begin(self, body: bytes, asking: Asking, answer: Settable) -> None:
        """As `predict`, for whoever has no task to wait in: `answer` gets an InferenceResponse, its JSON, or the error.

        Raises:
            As `predict`, what is known at once.
        """
        asked, model = self._read(body, asking)
        if asked.given is None:
            self._ask(asked, model, answer)
            return
        task = asyncio.ensure_future(self._once(asked, asked.given, model))
        self._tasks.add(task)
        task.add_done_callback(partial(self._settle, answer))

    def _settle(self, answer: Settable, task: "asyncio.Task[bytes]") -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            answer.set_result(task.result())
        else:
            answer.set_exception(error if isinstance(error, Exception) else NotReady("the server is stopping"))

    def _read(self, body: bytes, asking: Asking) -> tuple[Asked, ServedModel]:
        model = self._service.catalogue.get(self.model_id)
        # Before anything is read of it: under overload most of what comes is turned away, and that has to cost little.
        self._service.check_room(model, asking.text[_CHANCE:])
        own_id = asking.id
        now = time.time()
        arrived_us = int(now * 1e6)
        arrival = datetime.fromtimestamp(now, UTC)
        request, id_given = read_request(
            self.model_id,
            body,
            new_id=lambda: to_uuid(own_id),
            arrival=arrival,
            client_timestamps=model.config.client_timestamps,
        )
        text = str(request.request_id) if id_given else asking.text
        given = client_key(self.model_id, text, body) if id_given else None
        # Who has no name and no id is dealt out by chance, and of our own ids the end is chance enough.
        unit = request.user_id or (text if id_given else text[_CHANCE:])
        event_us = arrived_us if request.timestamp is arrival else int(request.timestamp.timestamp() * 1e6)
        return Asked(
            request, own_id, given, unit, arrived_us, event_us, asking.started, Role.ANSWER, asking.patience,
            asking.trace,
        ), model  # fmt: skip

    def metadata(self, version: str | None, unit: str) -> Answer:
        """Answer `GET /v2/models/{m}[/versions/{v}]`.

        Raises:
            ModelNotFound, VersionNotLoaded, NotReady: there is nothing to describe.
        """
        model, chosen = self._find(version, unit)
        held = self._service.held(chosen)
        described = open_inference.model_metadata(self.model_id, sorted(model.versions), chosen.schema, held)
        return Answer(200, orjson.dumps(described))

    def ready(self, version: str | None, unit: str) -> Answer:
        """Answer `GET /v2/models/{m}[/versions/{v}]/ready`.

        Raises:
            ModelNotFound, VersionNotLoaded, NotReady: it is not.
        """
        _, chosen = self._find(version, unit)
        self._service.held(chosen)
        return Answer(200, orjson.dumps({"name": self.model_id, "version": chosen.version, "ready": True}))

    async def infer(self, body: bytes, version: str | None, asking: Asking) -> Answer:
        """Answer `POST .../infer`; by version it comes from that one, routed or not, as a probe.

        Raises:
            As `predict`, and VersionNotLoaded.
        """
        model, chosen = self._find(version, asking.text)
        held = self._service.held(chosen)
        read = open_inference.read_infer(body, chosen.schema)
        arrival = time.time()
        arrived_us = int(arrival * 1e6)
        moment = datetime.fromtimestamp(arrival, UTC)
        request = InferenceRequest(to_uuid(asking.id), self.model_id, read.input_data, read.parameters, moment)
        role = Role.ANSWER if version is None else Role.PROBE
        asked = Asked(
            request, asking.id, None, asking.text, arrived_us, arrived_us, asking.started, role, asking.patience,
            asking.trace,
        )  # fmt: skip
        response = await self._service.predict(asked, model, chosen)
        given_id = read.id or str(request.request_id)
        return Answer(200, orjson.dumps(open_inference.write_infer(given_id, response, held, read.outputs)))

    def _find(self, version: str | None, unit: str) -> tuple[ServedModel, ServedVersion]:
        model = self._service.catalogue.get(self.model_id)
        if version is not None:
            return model, model.named(version)
        return model, model.choose(unit)

    def _ask(self, asked: Asked, model: ServedModel, answer: Settable | None = None) -> Any:
        return self._service.predict(asked, model, model.choose(asked.unit), answer)

    async def _shared(self, answer: "asyncio.Future[bytes]", asked: Asked, model: ServedModel) -> bytes | None:
        """The answer that another one has asked for, within the time that this one has. None: that one had less."""
        timeout = asked.within(model.config.timeout)
        end = asked.started + timeout
        try:
            # Shielded: a client that leaves must not take the answer away from the others that wait for it.
            return await asyncio.wait_for(asyncio.shield(answer), max(0.0, end - time.perf_counter()))
        except (TimeoutError, DeadlineExceeded):
            if time.perf_counter() < end:
                return None
            raise DeadlineExceeded(self.model_id, timeout) from None

    async def _once(self, asked: Asked, given: Sought, model: ServedModel) -> bytes:
        """One computation for one request id, however often and however concurrently it is asked."""
        key, digest = given
        earlier: bytes | None = None
        looked = False
        while (remembered := self._answers.find(key, digest, str(asked.request.request_id))) is not None or not looked:
            if remembered is None:
                earlier, looked = await self._earlier(asked, given, model), True
                continue  # meanwhile somebody else may have asked the model
            shared = await self._shared(remembered, asked, model)
            if shared is not None:
                return shared
        self._answers.expect(key, digest)
        try:
            answer = await self._computed(asked, given, model) if earlier is None else earlier
        except BaseException as error:
            self._answers.give_up(key, error)
            raise
        self._answers.settle(key, answer)
        return answer

    async def _computed(self, asked: Asked, given: Sought, model: ServedModel) -> bytes:
        """The model's answer, unless another HTTP process was asked the same and has answered meanwhile."""
        answer = write_response(await self._ask(asked, model))
        first = self._from_disk(asked, given)
        if first is None:
            self._kept.keep(*given, answer)
        return first or answer

    async def _earlier(self, asked: Asked, given: Sought, model: ServedModel) -> bytes | None:
        """What an earlier life of this process, or another process, has answered; None where it is not to be had.

        Raises:
            RequestIdReused: that was to another body.
        """
        kept = self._from_disk(asked, given)
        if kept is not None or self._logged is None:
            return kept
        stored = await self._logged.find(given)
        if stored is None:
            return None
        if stored.digest != given.digest:
            raise RequestIdReused(str(asked.request.request_id))
        response = self._service.repeat(stored, asked, model)
        return None if response is None else write_response(response)

    def _from_disk(self, asked: Asked, given: Sought) -> bytes | None:
        """Raises RequestIdReused."""
        kept = self._kept.find(given.key)
        if kept is None:
            return None
        if kept.digest != given.digest:
            raise RequestIdReused(str(asked.request.request_id))
        answer = orjson.loads(kept.answer)
        answer["metadata"]["repeated"] = True
        return orjson.dumps(answer)
