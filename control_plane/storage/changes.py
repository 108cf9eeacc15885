"""Changes of what serves, and their steps."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from control_plane.errors import ChangeMovedOn
from control_plane.storage.tables import ChangeRow, ChangeStepRow
from serving.store.tables import ModelVersionRow, RouteRow


def insert_change(session: Session, row: ChangeRow) -> bool:
    """Put a change on record; False when its model has one under way, or its idempotency key was used before."""
    statement = _insert(session, ChangeRow).values(row.model_dump()).on_conflict_do_nothing()
    return session.connection().execute(statement.returning(col(ChangeRow.id))).first() is not None


def find_change(session: Session, change_id: str) -> ChangeRow | None:
    """The change of this id."""
    return session.get(ChangeRow, change_id, populate_existing=True)


def find_by_key(session: Session, model_id: str, key: str) -> ChangeRow | None:
    """The change that was asked for under this idempotency key."""
    query = select(ChangeRow).where(ChangeRow.model_id == model_id, ChangeRow.idempotency_key == key)
    return session.exec(query).one_or_none()


def change_under_way(session: Session, model_id: str) -> ChangeRow | None:
    """The one change of a model that has not ended."""
    query = select(ChangeRow).where(ChangeRow.model_id == model_id, col(ChangeRow.ended_at).is_(None))
    return session.exec(query).one_or_none()


def changes_under_way(session: Session) -> list[ChangeRow]:
    """Every change that has not ended, of any model, oldest first."""
    return list(session.exec(select(ChangeRow).where(col(ChangeRow.ended_at).is_(None)).order_by(ChangeRow.id)))


def list_changes(
    session: Session, *, model_id: str | None, state: str | None, limit: int, before: str | None
) -> list[ChangeRow]:
    """Newest first; of one model, in one state, before the change of the id `before`, where those are given.

    Ids are of UUID version 7, so their order is that of time.
    """
    query = select(ChangeRow).order_by(col(ChangeRow.id).desc()).limit(limit)
    if model_id is not None:
        query = query.where(ChangeRow.model_id == model_id)
    if state is not None:
        query = query.where(ChangeRow.state == state)
    if before is not None:
        query = query.where(ChangeRow.id < before)
    return list(session.exec(query))


def steps_of(session: Session, change_ids: Collection[str]) -> dict[str, list[ChangeStepRow]]:
    """change -> its steps in order; each change is in it."""
    found: dict[str, list[ChangeStepRow]] = {each: [] for each in change_ids}
    query = select(ChangeStepRow).where(col(ChangeStepRow.change_id).in_(found))
    ordered = query.order_by(ChangeStepRow.change_id, col(ChangeStepRow.number))
    for row in session.exec(ordered.execution_options(populate_existing=True)):
        found[row.change_id].append(row)
    return found


def move_change(session: Session, change: ChangeRow, after: str, **values: Any) -> bool:
    """From the state that was read to `after`; False when somebody else has moved it since."""
    unmoved = (col(ChangeRow.id) == change.id) & (col(ChangeRow.state) == change.state)
    changed = {"state": after, "updated_at": datetime.now(UTC), **values}
    return session.connection().execute(update(ChangeRow).where(unmoved).values(changed)).rowcount == 1


def open_step(session: Session, change_id: str, name: str, intent: Mapping[str, Any]) -> None:
    """Say what is about to be done, before it is."""
    last = session.exec(select(func.max(ChangeStepRow.number)).where(ChangeStepRow.change_id == change_id)).one()
    row = ChangeStepRow(
        change_id=change_id,
        number=(last or 0) + 1,
        name=name,
        state="running",
        started_at=datetime.now(UTC),
        evidence=dict(intent),
    )
    session.add(row)
    session.flush()


def close_step(session: Session, change_id: str, state: str, evidence: Mapping[str, Any]) -> None:
    """End the step that is running, if one is: passed, failed or skipped. Its intent stays on record."""
    row = _find_running(session, change_id)
    if row is not None:
        row.state, row.ended_at, row.evidence = state, datetime.now(UTC), {**row.evidence, **evidence}
        session.add(row)
        session.flush()


def amend_step(session: Session, change_id: str, evidence: Mapping[str, Any]) -> None:
    """Show how far the running step is; nothing where none is, as after a cancel."""
    row = _find_running(session, change_id)
    if row is not None:
        row.evidence = {**row.evidence, **evidence}
        session.add(row)


def running_step(session: Session, change_id: str) -> ChangeStepRow:
    """The step that was begun and not ended.

    Raises:
        ChangeMovedOn: there is none: the change was cancelled, or advanced by another.
    """
    row = _find_running(session, change_id)
    if row is None:
        raise ChangeMovedOn(change_id, "elsewhere")
    return row


def note_source(session: Session, change_id: str, version: str | None) -> None:
    """What the change takes the traffic from, as it is in the transaction that does it."""
    its_row = col(ChangeRow.id) == change_id
    session.connection().execute(update(ChangeRow).where(its_row).values(source=version))


def last_known_good(session: Session, model_id: str) -> tuple[str, str] | None:
    """(version, change that took the traffic from it) of the latest version that a change succeeded with and that has
    no traffic now, if our copy of it is still here. What a change failed with was never shown to be good.
    """
    routed = set(session.exec(select(RouteRow.version).where(RouteRow.model_id == model_id, RouteRow.weight > 0)))
    good = (
        select(ChangeRow.id, ChangeRow.target)
        .join(ModelVersionRow, _same_version(ChangeRow.target))
        .where(ChangeRow.model_id == model_id, ChangeRow.state == "succeeded", col(ChangeRow.target).not_in(routed))
        # One that found its target serving already has shown nothing about it.
        .where(col(ChangeRow.source).is_distinct_from(col(ChangeRow.target)))
        .order_by(col(ChangeRow.id).desc())
    )
    found = session.exec(good.limit(1)).first()
    if found is None:
        return None
    change_id, version = found
    taken = select(ChangeRow.id).where(
        ChangeRow.model_id == model_id,
        ChangeRow.source == version,
        ChangeRow.target != version,
        ChangeRow.id > change_id,
    )
    shifted = taken.where(col(ChangeRow.state).in_(("verifying", "succeeded", "failed")))
    return version, session.exec(shifted.order_by(col(ChangeRow.id).desc()).limit(1)).first() or change_id


def _same_version(version: Any) -> Any:
    return (col(ModelVersionRow.model_id) == col(ChangeRow.model_id)) & (col(ModelVersionRow.version) == version)


def _find_running(session: Session, change_id: str) -> ChangeStepRow | None:
    query = select(ChangeStepRow).where(ChangeStepRow.change_id == change_id, ChangeStepRow.state == "running")
    return session.exec(query.execution_options(populate_existing=True)).one_or_none()


def _insert(session: Session, table: type[SQLModel]) -> Any:
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return insert(table)
