"""The two kinds of streams: predictions, and what their requests carried."""

import time
from typing import Any

import msgspec
from sqlmodel import Session

from serving.recorder import Payload, PredictionRecord
from serving.shipper.batch import Batch, Format
from serving.shipper.stream import Stream
from serving.store.payloads import chunks_of
from serving.store.prediction_writes import Prepared, prepare_predictions, write_chunks, write_predictions

_ENOUGH_PAYLOADS = 128 << 10
_PAYLOAD_PATIENCE = 5.0


def _rows(record: PredictionRecord) -> int:
    return len(record.rows) or 1  # a failed request has a row too


class Predictions(Stream):
    """Requests, a row per predicted row."""

    most = 1500
    late_after = 5.0
    format = Format(msgspec.msgpack.Decoder(list[PredictionRecord]).decode, _rows)

    def prepare(self, batch: Batch, dialect: str) -> Prepared:
        """Rows and counts."""
        return prepare_predictions(batch.parts, dialect)

    def write(self, session: Session, prepared: Prepared) -> int:
        """Rows, clients' keys and roll-ups."""
        return write_predictions(session, prepared, self.source)


class Payloads(Stream):
    """What requests carried. They wait for each other: the more there are in a chunk, the smaller it is."""

    most = 512
    late_after = 60.0
    format = Format(msgspec.msgpack.Decoder(list[Payload]).decode, lambda _: 1)
    _since: float | None = None

    def is_ready(self, waiting: int) -> bool:
        """When there are enough for a chunk, or the first has waited for some seconds."""
        now = time.monotonic()
        self._since = self._since or now
        return waiting >= _ENOUGH_PAYLOADS or now - self._since >= _PAYLOAD_PATIENCE

    def prepare(self, batch: Batch, dialect: str) -> list[dict[str, Any]]:  # noqa: ARG002  # the same for all
        """Compressed."""
        return chunks_of([part.record for part in batch.parts])

    def write(self, session: Session, prepared: list[dict[str, Any]]) -> int:
        """A chunk per version."""
        self._since = None
        write_chunks(session, prepared)
        return 0
