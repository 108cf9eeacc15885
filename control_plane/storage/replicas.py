"""What replicas report, and what they are asked to hold."""

from datetime import UTC, datetime

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from control_plane.replicas import HeldVersion, Replica
from serving.store.clock import database_now_ms
from serving.store.tables import (
    DesiredVersionRow,
    ReplicaRow,
    ReplicaVersionRow,
    RouteGenerationRow,
    RouteRow,
    RoutingRow,
)

KEPT_WARM = 3
"""Versions of a model that stay loaded after a change, the routed and the pinned among them."""


def read_replicas(session: Session, *, within: float) -> list[Replica]:
    """Replicas whose last heartbeat is younger than `within` seconds, by the database's clock, with what they hold."""
    now = database_now_ms(session)
    query = select(ReplicaRow).where(ReplicaRow.heartbeat_ms > now - int(within * 1000)).order_by(ReplicaRow.replica)
    rows = session.exec(query.execution_options(populate_existing=True)).all()
    held: dict[str, dict[tuple[str, str], HeldVersion]] = {row.replica: {} for row in rows}
    if rows:
        versions = select(ReplicaVersionRow).where(col(ReplicaVersionRow.replica).in_(held))
        for each in session.exec(versions.execution_options(populate_existing=True)):
            held[each.replica][each.model_id, each.version] = HeldVersion(
                each.state, each.attempt, each.reason, each.facts, each.changed_at
            )
    return [_replica(row, held[row.replica], now) for row in rows]


def read_revisions(session: Session) -> dict[str, int]:
    """model -> revision of its routes, of every model that is or was served."""
    return {row.model_id: row.revision for row in session.exec(select(RoutingRow))}


def want_version(session: Session, model_id: str, version: str) -> int:
    """Ask every replica to load the version anew, warm-up included; returns the attempt to look for.

    The version must be kept (`VersionManager.prepare`); the foreign key refuses others. An attempt is numbered by the
    generation it raises: counted from one again after its row was released, it would be answered by what replicas
    remember of the attempt that failed then.
    """
    generation = raise_generation(session)
    row = session.get(DesiredVersionRow, (model_id, version), populate_existing=True)
    if row is None:
        row = DesiredVersionRow(model_id=model_id, version=version, attempt=0, wanted_at=datetime.now(UTC))
    row.attempt = max(row.attempt + 1, generation)
    row.wanted_at = datetime.now(UTC)
    session.add(row)
    session.flush()
    return row.attempt


def release_version(session: Session, model_id: str, version: str) -> bool:
    """A version that was prepared for nothing is not wanted any more, unless it has traffic or is pinned."""
    routed = session.get(RouteRow, (model_id, version), populate_existing=True)
    row = session.get(DesiredVersionRow, (model_id, version), populate_existing=True)
    if row is None or row.pinned or routed is not None:
        return False
    session.delete(row)
    session.flush()
    raise_generation(session)
    return True


def keep_warm(session: Session, model_id: str, pinned: str | None) -> list[str]:
    """After a change: only `pinned` is pinned, and of the rest only the latest wanted stay; returns the released ones.

    Routed versions stay always; every routed version, and the pinned one, becomes a wanted one.
    """
    routed = set(session.exec(select(RouteRow.version).where(RouteRow.model_id == model_id)))
    needed = routed | ({pinned} if pinned is not None else set())
    _want_all(session, model_id, needed)
    of_model = col(DesiredVersionRow.model_id) == model_id
    session.connection().execute(update(DesiredVersionRow).where(of_model).values(pinned=False))
    if pinned is not None:
        its_row = of_model & (col(DesiredVersionRow.version) == pinned)
        session.connection().execute(update(DesiredVersionRow).where(its_row).values(pinned=True))
    released = _superfluous(session, model_id, needed)
    if released:
        gone = of_model & col(DesiredVersionRow.version).in_(released)
        session.connection().execute(delete(DesiredVersionRow).where(gone))
    session.expire_all()
    raise_generation(session)
    return released


def raise_generation(session: Session) -> int:
    """Let every replica look again at once: routes, configuration or wanted versions have changed. Returns the new one.

    It locks the one row until the transaction ends, so that no two wishes get the same number.
    """
    raised = (
        update(RouteGenerationRow).values(value=RouteGenerationRow.value + 1).returning(col(RouteGenerationRow.value))
    )
    return int(session.connection().execute(raised).scalar_one())


def _want_all(session: Session, model_id: str, needed: set[str]) -> None:
    wanted = set(session.exec(select(DesiredVersionRow.version).where(DesiredVersionRow.model_id == model_id)))
    now = datetime.now(UTC)
    session.add_all(
        DesiredVersionRow(model_id=model_id, version=each, wanted_at=now) for each in sorted(needed - wanted)
    )
    session.flush()


def _superfluous(session: Session, model_id: str, needed: set[str]) -> list[str]:
    latest = select(DesiredVersionRow.version).where(DesiredVersionRow.model_id == model_id)
    wanted = list(session.exec(latest.order_by(col(DesiredVersionRow.wanted_at).desc(), DesiredVersionRow.version)))
    room = max(0, KEPT_WARM - len(needed))
    return [each for each in wanted if each not in needed][room:]


def _replica(row: ReplicaRow, versions: dict[tuple[str, str], HeldVersion], now: int) -> Replica:
    return Replica(
        replica=row.replica,
        url=row.url,
        started_at=row.started_at,
        heartbeat=datetime.fromtimestamp(row.heartbeat_ms / 1000, UTC),
        age=max(0.0, (now - row.heartbeat_ms) / 1000),
        generation=row.generation,
        revisions=row.revisions,
        workers=row.workers,
        versions=versions,
    )
