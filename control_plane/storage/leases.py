"""Leases: who may act on something, until when, under which fencing token."""

from dataclasses import dataclass

from sqlalchemy import Update, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from control_plane.errors import LeaseHeld
from control_plane.storage.tables import LeaseRow
from serving.store.clock import database_now_ms


@dataclass(frozen=True)
class Lease:
    """A right to act. `token` is what a fenced write is held against, not the holder's belief that it still holds."""

    name: str
    holder: str
    token: int


def take_lease(session: Session, name: str, holder: str, seconds: float) -> Lease:
    """Take, or take again, the lease `name` for `seconds`; the token grows whenever it was not held before.

    Raises:
        LeaseHeld: somebody else holds it.
    """
    now = database_now_ms(session)
    expires = now + int(seconds * 1000)
    _ensure_row(session, name)
    mine = (col(LeaseRow.holder) == holder) & (col(LeaseRow.expires_at_ms) > now)
    if _changed(session, update(LeaseRow).where(col(LeaseRow.name) == name, mine).values(expires_at_ms=expires)) == 0:
        taken = (
            update(LeaseRow)
            .where(col(LeaseRow.name) == name, col(LeaseRow.expires_at_ms) <= now)
            .values(holder=holder, token=LeaseRow.token + 1, expires_at_ms=expires)
        )
        if _changed(session, taken) == 0:
            row = _read(session, name)
            raise LeaseHeld(name, row.holder, max(0.0, (row.expires_at_ms - now) / 1000))
    return Lease(name, holder, _read(session, name).token)


def release_lease(session: Session, lease: Lease) -> None:
    """Give it up at once, if it is still held."""
    held = (col(LeaseRow.name) == lease.name) & (col(LeaseRow.token) == lease.token)
    session.connection().execute(update(LeaseRow).where(held).values(expires_at_ms=0))


def holds(session: Session, lease: Lease) -> bool:
    """Whether this very lease is in force; locks its row until the transaction ends, so that it stays so."""
    now = database_now_ms(session)
    in_force = (
        (col(LeaseRow.name) == lease.name)
        & (col(LeaseRow.holder) == lease.holder)
        & (col(LeaseRow.token) == lease.token)
        & (col(LeaseRow.expires_at_ms) > now)
    )
    return _changed(session, update(LeaseRow).where(in_force).values(token=LeaseRow.token)) == 1


def current_token(session: Session, name: str) -> int:
    """The token of the last holder; 0 when nobody ever held it."""
    row = session.get(LeaseRow, name, populate_existing=True)
    return row.token if row else 0


def _ensure_row(session: Session, name: str) -> None:
    """A row that has expired since ever, so that taking is one guarded UPDATE on both databases."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    row = {"name": name, "holder": "", "token": 0, "expires_at_ms": 0}
    session.connection().execute(insert(LeaseRow).values(row).on_conflict_do_nothing(index_elements=["name"]))


def _read(session: Session, name: str) -> LeaseRow:
    return session.get_one(LeaseRow, name, populate_existing=True)


def _changed(session: Session, statement: Update) -> int:
    return session.connection().execute(statement).rowcount
