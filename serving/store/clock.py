"""The database's clock: the one clock that all holders of leases share."""

from sqlalchemy import text
from sqlmodel import Session

# SQLite's julianday keeps milliseconds; PostgreSQL's now() would stand still inside a transaction.
_NOW_MS = {
    "sqlite": "SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
    "postgresql": "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
}


def database_now_ms(session: Session) -> int:
    """Milliseconds since 1970-01-01 UTC, as the database counts them."""
    return int(session.connection().execute(text(_NOW_MS[session.get_bind().dialect.name])).scalar_one())
