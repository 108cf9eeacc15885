"""Rows of predictions into the database the quick way: tuples on SQLite, binary COPY on PostgreSQL."""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from serving.store.prediction_writes import Logged, Part

_COLUMNS = (
    "id", "model_id", "version", "arm", "role", "unit", "arrived_us", "event_us", "latency_us", "status",
    "row", "value", "label", "score",
)  # fmt: skip
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)
_TUPLES = f"INSERT INTO prediction ({_NAMES}) VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"  # noqa: S608
_STAGE = "CREATE TEMP TABLE IF NOT EXISTS prediction_stage (LIKE prediction) ON COMMIT DELETE ROWS"
_COPY = f"COPY prediction_stage ({_NAMES}) FROM STDIN (FORMAT BINARY)"
_FROM_STAGE = f"INSERT INTO prediction ({_NAMES}) SELECT {_NAMES} FROM prediction_stage ON CONFLICT DO NOTHING"  # noqa: S608

# PostgreSQL's binary COPY: per row a count of fields, per field a length and its bytes, all big-endian.
_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_ID = Struct(">hi16s")
_TIMES = Struct(">iqiqiqii")
_ROW = Struct(">ii")
_FLOAT = Struct(">id")
_LENGTH = Struct(">i")


PackedRows = list[tuple[Any, ...]] | bytes
"""Rows as the database's driver takes them: tuples for SQLite, the contents of a binary COPY for PostgreSQL."""


def pack_rows(dialect: str, parts: "Iterable[Part]") -> PackedRows:
    """The rows of these parts, for a database of this kind. Raises OverflowError, ValueError, struct.error."""
    return b"".join((_BEGIN, *_packed(parts), _END)) if dialect == "postgresql" else list(_tuples(parts))


def insert_rows(connection: Connection, rows: PackedRows) -> int:
    """Insert these, but for those whose key is there; how many were inserted.

    Raises:
        sqlalchemy.exc.DBAPIError, OverflowError, ValueError: nothing can be said of what was inserted; roll back.
    """
    if isinstance(rows, bytes):
        return _copy(connection, rows)
    return connection.exec_driver_sql(_TUPLES, rows).rowcount if rows else 0


def _tuples(parts: "Iterable[Part]") -> Iterator[tuple[Any, ...]]:
    for each, first, last in parts:
        fixed = (
            each.id, each.model_id, each.version, each.arm, each.role, each.unit,
            each.arrived_us, each.event_us, each.latency_us, each.status,
        )  # fmt: skip
        if not each.rows:
            yield (*fixed, 0, None, None, None)
        for row in range(first, last if each.rows else first):
            yield (*fixed, row, *each.rows[row])


def _copy(connection: Connection, content: bytes) -> int:
    import psycopg  # only here: it takes its time to import, and most installations use SQLite

    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor:
            cursor.execute(_STAGE)
            with cursor.copy(_COPY) as copy:
                copy.write(content)
            cursor.execute(_FROM_STAGE)
            return int(cursor.rowcount)
    except psycopg.Error as error:
        # As SQLAlchemy would, had it been asked: so that an outage is told from a record that is refused.
        raise DBAPIError.instance("COPY prediction_stage", None, error, psycopg.Error) from error


def _packed(parts: "Iterable[Part]") -> Iterator[bytes]:
    for each, first, last in parts:
        fixed = _packed_request(each)
        if not each.rows:
            yield b"".join((fixed, _ROW.pack(4, 0), _NULL * 3))
        for row in range(first, last if each.rows else first):
            value, label, score = each.rows[row]
            yield b"".join((fixed, _ROW.pack(4, row), _number(value), _text(label), _number(score)))


def _packed_request(each: "Logged") -> bytes:
    texts = (each.model_id, each.version, each.arm, each.role, each.unit)
    times = _TIMES.pack(8, each.arrived_us, 8, each.event_us, 8, each.latency_us, 4, each.status)
    return b"".join((_ID.pack(len(_COLUMNS), 16, each.id), *map(_text, texts), times))


def _text(text: str | None) -> bytes:
    if text is None:
        return _NULL
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _number(number: float | None) -> bytes:
    return _NULL if number is None else _FLOAT.pack(8, number)
