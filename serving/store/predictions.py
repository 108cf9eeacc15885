"""Reading the prediction log, and keeping it from growing for ever."""

import time
from collections.abc import Iterator

from sqlalchemy import ColumnElement, Table, delete, func, select
from sqlmodel import Session

from serving.store.database import Database
from serving.store.keys import first_key
from serving.store.payloads import StoredPayload, open_chunk
from serving.store.prediction_tables import PayloadChunkRow, PredictionAliasRow, PredictionRow

_PREDICTION = PredictionRow.metadata.tables["prediction"]
_ALIAS = PredictionAliasRow.metadata.tables["prediction_alias"]
_CHUNK = PayloadChunkRow.metadata.tables["payload_chunk"]
_ROWS_AT_ONCE = 2000
_CHUNKS_AT_ONCE = 100


def count_predictions(
    session: Session, model_id: str, since: float, until: float, *, version: str | None = None
) -> int:
    """Predicted rows of a model that arrived in [since, until), in seconds since 1970; failed requests count as one.

    Reads every row of the window, of all models: for rates and totals over long windows use `read_rollups`.
    """
    condition = [*_within(_PREDICTION.c.id, since, until), _PREDICTION.c.model_id == model_id]
    if version is not None:
        condition.append(_PREDICTION.c.version == version)
    return int(session.connection().execute(select(func.count()).where(*condition)).scalar_one())


def read_payloads(
    session: Session, model_id: str, since: float, until: float, *, version: str | None = None
) -> Iterator[StoredPayload]:
    """Payloads of a model's requests that arrived in [since, until), in seconds since 1970, chunk by chunk."""
    first, last = first_key(int(since * 1000)), first_key(int(until * 1000))
    condition = [_CHUNK.c.first_id < last, _CHUNK.c.last_id >= first, _CHUNK.c.model_id == model_id]
    if version is not None:
        condition.append(_CHUNK.c.version == version)
    for body in (
        session.connection().execute(select(_CHUNK.c.body).where(*condition).order_by(_CHUNK.c.first_id)).scalars()
    ):
        yield from (each for each in open_chunk(body) if first <= each.id < last)


def delete_predictions_before(database: Database, before: float) -> int:
    """Remove predictions, payloads and clients' ids of what arrived before a moment (seconds since 1970).

    In short transactions with pauses as long, so that others write in between. Returns how many rows of predictions
    there were. Roll-ups stay; see `prune_rollups`.

    Raises:
        DatabaseUnavailable: it cannot be used; what was removed so far is gone.
    """
    bound = first_key(int(before * 1000))
    _delete_before(database, _CHUNK, _CHUNK.c.first_id, _CHUNKS_AT_ONCE, _CHUNK.c.last_id < bound)
    _delete_before(database, _ALIAS, _ALIAS.c.id, _ROWS_AT_ONCE, _ALIAS.c.id < bound)
    return _delete_before(database, _PREDICTION, _PREDICTION.c.id, _ROWS_AT_ONCE, _PREDICTION.c.id < bound)


def _delete_before(
    database: Database, table: Table, key: ColumnElement[bytes], at_once: int, condition: ColumnElement[bool]
) -> int:
    removed = 0
    while True:
        began = time.monotonic()
        with database.writing() as session:
            connection = session.connection()
            ordered = select(key).where(condition).order_by(key)
            edge = connection.execute(ordered.limit(1).offset(at_once)).scalar_one_or_none()
            chunk = delete(table).where(condition) if edge is None else delete(table).where(condition, key <= edge)
            removed += connection.execute(chunk).rowcount
        if edge is None:
            return removed
        time.sleep(time.monotonic() - began)


def _within(key: ColumnElement[bytes], since: float, until: float) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return key >= first_key(int(since * 1000)), key < first_key(int(until * 1000))
