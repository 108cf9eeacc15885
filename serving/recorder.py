"""The prediction log's first stop, in the HTTP process: what a tick of the event loop answered is on disk before it leaves."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from serving.logs import logger
from serving.spool.writer import PAYLOADS, PREDICTIONS, Spool

_PAYLOAD_SECONDS = 0.1
_PAYLOAD_BYTES = 32 << 10  # few enough to be in the processor's cache still when they are written
_QUIET_SECONDS = 60.0

log = logger(__name__)


class PredictionRecord(msgspec.Struct, array_like=True, gc=False):
    """One request that a model was asked, answered or not. Times are microseconds; moments count from 1970."""

    id: bytes  # ours, a UUIDv7
    client_key: bytes | None  # blake2b-16 of model, a zero byte and the client's own id, when it gave one
    body_digest: bytes | None  # blake2b-16 of the body it gave that id to
    arrived_us: int
    event_us: int
    model_id: str
    version: str
    arm: str | None
    role: str  # of serving.contracts.Role
    unit: str | None  # the user
    latency_us: int
    status: int  # the HTTP status that was answered
    rows: list[tuple[float | None, str | None, float | None]]  # value, label, score of each; empty unless status is 200


class Payload(msgspec.Struct, array_like=True, gc=False):
    """What a model was asked and what it said, as both travelled between the processes (serving/contracts.py)."""

    id: bytes  # of its PredictionRecord
    model_id: str
    version: str
    rows: int
    encoding: int  # of the features: serving.contracts.Encoding
    features: bytes
    variant: bytes  # JSON of columns and parameters
    answer_encoding: int
    answer_width: int  # numbers in a row of the answer, where it is numbers
    answer: bytes


class Recorder:
    """Writes records to this process's spool, once a tick. Make it, and use it, in the event loop's thread.

    Predictions are on disk before `durable` is done; payloads may follow 100 ms later. What cannot be written is
    counted, logged once and told to `on_dropped(stream, records)`, and the requests are answered all the same.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        payloads: bool,
        on_dropped: Callable[[str, int], None],
        predictions: bool = True,
    ) -> None:
        """`max_bytes` is for both streams of this process together.

        `predictions`: whether anything is logged at all; `payloads`: whether features are.
        """
        self._spool = Spool(folder, max_bytes, self._note_dropped)
        self.keeps_predictions = predictions
        self.keeps_payloads = payloads
        self._on_dropped = on_dropped
        self._loop = asyncio.get_running_loop()
        self._encode = msgspec.msgpack.Encoder().encode
        self._records: list[PredictionRecord] = []
        self._written: _Tick | None = None
        self._flush_due = False
        self._payloads: list[Payload] = []
        self._payload_bytes = 0
        self._payload_timer: asyncio.TimerHandle | None = None
        self._quiet_until = {PREDICTIONS: 0.0, PAYLOADS: 0.0}

    def add(self, record: PredictionRecord, payload: Payload | None = None) -> None:
        """Log one request: it is written with everything else of this tick."""
        if not self.keeps_predictions:
            return
        self._records.append(record)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_at_the_end)
        if payload is not None:
            self.add_payload(payload)

    def add_payload(self, payload: Payload) -> None:
        """Keep what one request carried, where payloads are kept: it is written within 100 ms."""
        if not self.keeps_payloads:
            return
        self._payloads.append(payload)
        self._payload_bytes += len(payload.features) + len(payload.answer)
        if self._payload_bytes >= _PAYLOAD_BYTES:
            self._flush_payloads()
        elif self._payload_timer is None:
            self._payload_timer = self._loop.call_later(_PAYLOAD_SECONDS, self._flush_payloads)

    def flush(self) -> None:
        """Write what was added so far now, for whoever is about to give many answers at once."""
        if self._records:
            self._flush()

    def durable(self) -> "asyncio.Future[None]":
        """Done once everything added so far is written, or is known to be lost. One for all requests of a tick."""
        if not self._records:
            return _done(self._loop)
        if self._written is None:
            self._written = _Tick(loop=self._loop)
        return self._written

    def close(self) -> None:
        """Write what is left, and have it survive a power cut."""
        self._flush()
        self._flush_payloads()
        self._spool.close()

    def _flush_at_the_end(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        records, self._records = self._records, []
        written, self._written = self._written, None
        try:
            if records:
                self._write(PREDICTIONS, records)
        except Exception:  # whatever it is, requests wait for this, and answering them matters more
            log.exception("the prediction log could not be written")
            self._on_dropped(PREDICTIONS, len(records))
        finally:
            if written is not None:
                written.set_result(None)

    def _flush_payloads(self) -> None:
        if self._payload_timer is not None:
            self._payload_timer.cancel()
            self._payload_timer = None
        payloads, self._payloads = self._payloads, []
        self._payload_bytes = 0
        if payloads:
            self._write(PAYLOADS, payloads)

    def _write(self, stream: str, records: list[Any]) -> None:
        try:
            body = self._encode(records)
        except (ValueError, OverflowError, TypeError, msgspec.MsgspecError):
            self._write_singly(stream, records)
            return
        if not self._append(stream, body, len(records)):
            self._spool.drop(stream, len(records))

    def _append(self, stream: str, body: bytes, count: int) -> bool:
        if stream == PAYLOADS:
            return self._spool.payloads.append(body, count)
        return self._spool.predictions.append(body, count) or (
            self._spool.sacrifice_payloads() and self._spool.predictions.append(body, count)
        )

    def _write_singly(self, stream: str, records: list[Any]) -> None:
        """One of them has a text or number that cannot be encoded: the others shall not go with it."""
        if len(records) == 1:
            self._spool.drop(stream, 1)
            return
        for record in records:
            self._write(stream, [record])

    def _note_dropped(self, stream: str, count: int) -> None:
        self._on_dropped(stream, count)
        now = time.monotonic()
        if now >= self._quiet_until[stream]:
            log.error(
                "records of the prediction log were dropped: disk full, or spool_max_bytes used up", stream=stream
            )
        self._quiet_until[stream] = now + _QUIET_SECONDS


class _Tick(asyncio.Future[None]):
    """Shared by all requests of a tick, so that none of them may cancel it when its client leaves."""

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002  # asyncio's signature
        """Not cancelled: the task that asked is, as soon as this is done."""
        return False


def _done(loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
    done = loop.create_future()
    done.set_result(None)
    return done
