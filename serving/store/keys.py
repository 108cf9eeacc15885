"""The column type of 16-byte keys."""

import uuid
from typing import Any

from sqlalchemy import Dialect, LargeBinary
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine


class Key(TypeDecorator[bytes]):
    """16 bytes: `uuid` in PostgreSQL, BLOB in SQLite. Bytes compare alike in both, so a UUIDv7 keeps its time order."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """What the database knows it as."""
        return dialect.type_descriptor(postgresql.UUID() if dialect.name == "postgresql" else LargeBinary(16))

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> Any:
        """Into the database."""
        return uuid.UUID(bytes=value) if value is not None and dialect.name == "postgresql" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> bytes | None:  # noqa: ARG002 (base class)
        """Out of the database."""
        return value.bytes if isinstance(value, uuid.UUID) else value


def first_key(time_ms: int) -> bytes:
    """The smallest UUIDv7 of a millisecond since 1970: windows of time are ranges of the key."""
    return time_ms.to_bytes(6, "big") + bytes(10)
