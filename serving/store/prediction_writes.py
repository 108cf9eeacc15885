"""What a shipper does in one transaction: rows, clients' ids, roll-ups, payloads, and how far the spool is read."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session

from serving.store.prediction_copy import PackedRows, insert_rows, pack_rows
from serving.store.prediction_tables import PayloadChunkRow, PredictionAliasRow, PredictionRow, SpoolPositionRow
from serving.store.rollups import Countable, Spans, add_rollups, roll_up

_PREDICTION = PredictionRow.metadata.tables["prediction"]
_ALIAS = PredictionAliasRow.metadata.tables["prediction_alias"]
_CHUNK = PayloadChunkRow.metadata.tables["payload_chunk"]
_POSITION = SpoolPositionRow.metadata.tables["spool_position"]
_INSERT: dict[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_ANSWERED = 200


class Logged(Countable, Protocol):
    """A request as the HTTP process recorded it; see serving/recorder.py."""

    id: bytes
    client_key: bytes | None
    body_digest: bytes | None
    event_us: int
    unit: str | None


class Part(NamedTuple):
    """A request, or those of its rows that one transaction takes: [first, last). A failed request has the one row 0."""

    record: Logged
    first: int
    last: int


class Prepared(NamedTuple):
    """Parts with what storing them takes, if none of them is stored already: made before the transaction."""

    parts: Sequence[Part]
    rows: PackedRows
    spans: Spans


class Position(NamedTuple):
    """How far a spool is read."""

    segment: int = 0
    offset: int = 0  # bytes
    taken: int = 0  # rows of the frame at the offset


class Losses(NamedTuple):
    """What a step passed over."""

    torn: int = 0  # bytes that could not be read
    dropped: int = 0  # records that the database refused
    repeated: int = 0  # records whose client key was stored before


def read_position(session: Session, spool: str) -> Position:
    """How far a spool is read, as of now."""
    columns = [_POSITION.c[name] for name in Position._fields]
    row = session.connection().execute(select(*columns).where(_POSITION.c.spool == spool)).one_or_none()
    return Position(*row) if row else Position()


def lock_position(session: Session, spool: str) -> Position:
    """How far a spool is read; nobody else moves it until this transaction ends."""
    connection = session.connection()
    start = {"spool": spool, **Position()._asdict(), **Losses()._asdict()}
    if connection.dialect.name == "postgresql":  # without a row there would be nothing to lock
        connection.execute(postgresql.insert(_POSITION).on_conflict_do_nothing(), start)
    columns = [_POSITION.c[name] for name in Position._fields]
    row = connection.execute(select(*columns).where(_POSITION.c.spool == spool).with_for_update()).one_or_none()
    if row is None:
        connection.execute(sqlite.insert(_POSITION), start)
    return Position(*row) if row else Position()


def move_position(session: Session, spool: str, to: Position, losses: Losses) -> None:
    """The spool is read up to there, once this transaction is committed."""
    added = {name: _POSITION.c[name] + count for name, count in losses._asdict().items() if count}
    session.connection().execute(update(_POSITION).where(_POSITION.c.spool == spool).values(**to._asdict(), **added))


def prepare_predictions(parts: Sequence[Part], dialect: str) -> Prepared:
    """For a database of this kind. Raises OverflowError, ValueError, struct.error: a record that it cannot hold."""
    return Prepared(parts, pack_rows(dialect, parts), roll_up(_begun(parts)))


def write_predictions(session: Session, prepared: Prepared, source: str) -> int:
    """Store these and count them. How many requests were left out because they repeat one that is stored.

    `prepared` is used up by it: its counts have those that were stored before added.
    """
    connection = session.connection()
    parts = prepared.parts
    ours = _claim_client_keys(connection, parts)
    all_ours = len(ours) == len(parts)
    stored = _insert_new(connection, ours, prepared.rows if all_ours else pack_rows(connection.dialect.name, ours))
    new = _begun(stored)
    add_rollups(connection, prepared.spans if len(stored) == len(parts) else roll_up(new), source)
    return len(_begun(parts)) - len(new)


def write_chunks(session: Session, chunks: Sequence[dict[str, Any]]) -> None:
    """Store payloads, as serving/store/payloads.py made chunks of them."""
    connection = session.connection()
    connection.execute(_INSERT[connection.dialect.name](_CHUNK).on_conflict_do_nothing(), chunks)


def _claim_client_keys(connection: Connection, parts: Sequence[Part]) -> list[Part]:
    """Without those whose client's id belongs to another request. Failures claim none: they may be tried again."""
    claims: dict[bytes, Logged] = {}
    for part in parts:
        if _claims(part.record):
            claims.setdefault(_key(part.record), part.record)
    if not claims:
        return list(parts)
    rows = [{"client_key": key, "id": each.id, "body_digest": each.body_digest} for key, each in sorted(claims.items())]
    # In the order of the keys, so that two shippers never wait for each other in a circle.
    connection.execute(_INSERT[connection.dialect.name](_ALIAS).on_conflict_do_nothing(), rows)
    # Read back by a statement of its own: it sees what another shipper has committed meanwhile.
    found = connection.execute(select(_ALIAS.c.client_key, _ALIAS.c.id).where(_ALIAS.c.client_key.in_(list(claims))))
    owners = {row.client_key: row.id for row in found}
    return [part for part in parts if not _claims(part.record) or owners[_key(part.record)] == part.record.id]


def _begun(parts: Iterable[Part]) -> list[Logged]:
    """The requests that begin here, each of which is counted once."""
    return [part.record for part in parts if part.first == 0]


def _claims(record: Logged) -> bool:
    return record.client_key is not None and record.status == _ANSWERED


def _key(record: Logged) -> bytes:
    return record.client_key or b""


def _insert_new(connection: Connection, parts: Sequence[Part], rows: PackedRows) -> Sequence[Part]:
    """Insert what is not stored yet; returns that. `rows` are the parts'."""
    connection.exec_driver_sql("SAVEPOINT log_rows")
    if insert_rows(connection, rows) != sum(part.last - part.first for part in parts):
        # Rare: an id of ours that is stored already, as after somebody copied a spool. Only what is new may be counted.
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT log_rows")
        parts = _not_stored(connection, parts)
        insert_rows(connection, pack_rows(connection.dialect.name, parts))
    connection.exec_driver_sql("RELEASE SAVEPOINT log_rows")
    return parts


def _not_stored(connection: Connection, parts: Iterable[Part]) -> list[Part]:
    new: dict[tuple[bytes, int], Part] = {}
    for part in parts:
        place = part.record.id, part.first
        condition = (_PREDICTION.c.id == place[0], _PREDICTION.c.row == place[1])
        stored: Any = connection.execute(select(_PREDICTION.c.row).where(*condition)).first()
        if stored is None:
            new.setdefault(place, part)
    return list(new.values())
