"""What the aliases in MLflow should say, kept in our database until MLflow says it."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import update
from sqlmodel import Session, col, select

from control_plane.storage.tables import AliasProjectionRow


def want_aliases(session: Session, model_id: str, aliases: Mapping[str, str | None]) -> None:
    """Note what the aliases should say from now on: alias -> version, None for "should not exist"."""
    for alias, version in aliases.items():
        row = session.get(AliasProjectionRow, (model_id, alias), populate_existing=True)
        if row is None:
            row = AliasProjectionRow(model_id=model_id, alias=alias, wanted=version, changed_at=datetime.now(UTC))
        elif row.wanted == version and not row.pending:
            continue
        row.wanted, row.pending, row.attempts, row.problem = version, True, 0, None
        row.changed_at = datetime.now(UTC)
        session.add(row)


def pending_aliases(session: Session) -> list[AliasProjectionRow]:
    """What MLflow does not show yet, in the order to write it.

    `previous` before `champion`: whoever reads between the two writes must never find the old champion nowhere.
    """
    query = select(AliasProjectionRow).where(col(AliasProjectionRow.pending))
    return sorted(session.exec(query), key=lambda row: (row.model_id, row.alias == "champion", row.alias))


def settled_aliases(session: Session) -> list[AliasProjectionRow]:
    """What MLflow shows as we last wrote it, unless a person changed it."""
    return list(session.exec(select(AliasProjectionRow).where(~col(AliasProjectionRow.pending))))


def wanted_aliases(session: Session) -> dict[str, dict[str, str | None]]:
    """Our aliases, whether MLflow shows them already or not: model -> alias -> version, None for "should not exist"."""
    found: dict[str, dict[str, str | None]] = {}
    for row in session.exec(select(AliasProjectionRow)):
        found.setdefault(row.model_id, {})[row.alias] = row.wanted
    return found


def confirm_alias(session: Session, row: AliasProjectionRow) -> bool:
    """Record that MLflow now says what `row` wanted; False when something newer is wanted by now."""
    return _amend(session, row, written=row.wanted, written_at=datetime.now(UTC), pending=False, problem=None)


def doubt_alias(session: Session, row: AliasProjectionRow) -> None:
    """Something newer was wanted while `row` was written: it may have been shown already, and we have just undone it."""
    which = (col(AliasProjectionRow.model_id) == row.model_id) & (col(AliasProjectionRow.alias) == row.alias)
    session.connection().execute(update(AliasProjectionRow).where(which).values(pending=True))


def fail_alias(session: Session, row: AliasProjectionRow, problem: str) -> bool:
    """Record an attempt that did not work; it stays pending."""
    return _amend(session, row, attempts=row.attempts + 1, problem=problem)


def _amend(session: Session, row: AliasProjectionRow, **values: object) -> bool:
    """Only if the row is still the one that was read: a write of routes may have overtaken us meanwhile."""
    same = (
        (col(AliasProjectionRow.model_id) == row.model_id)
        & (col(AliasProjectionRow.alias) == row.alias)
        & (col(AliasProjectionRow.changed_at) == row.changed_at)
    )
    return session.connection().execute(update(AliasProjectionRow).where(same).values(**values)).rowcount == 1
