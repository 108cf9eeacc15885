"""Replicas: reading what should be served, and writing what one data plane makes of it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import delete, or_, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from serving.contracts import ModelServingConfig
from serving.desired import DesiredModel, DesiredState, Key, VersionReport, WantedVersion
from serving.routing import Route
from serving.store.clock import database_now_ms
from serving.store.tables import (
    DesiredVersionRow,
    ModelVersionRow,
    ReplicaRow,
    ReplicaVersionRow,
    RouteGenerationRow,
    RouteRow,
    RoutingRow,
    ServingConfigRow,
)

_READS = 5


def read_generation(session: Session) -> int:
    """Grows with every change that replicas must notice."""
    return session.exec(select(RouteGenerationRow.value)).one()


def read_desired(session: Session) -> DesiredState:
    """Everything that should be served, all of one generation.

    On PostgreSQL each statement sees what was committed until then, so it is read again when the generation has
    moved meanwhile. Under writes without end the last one stands, under the generation it began with: whoever polls
    reads once more then.
    """
    for _ in range(_READS):
        session.expire_all()
        desired = _read_once(session)
        if read_generation(session) == desired.generation:
            break
    return desired


def _read_once(session: Session) -> DesiredState:
    problems: list[str] = []
    generation = read_generation(session)
    # Before the routes: those may then be newer than the revision says, but never older than one that is confirmed.
    revisions = dict(session.exec(select(RoutingRow.model_id, RoutingRow.revision)).all())
    kept = _kept_versions(session)
    routes = _routes(session, kept, problems)
    configs = _configs(session, problems)
    versions = _wanted(session, kept, routes)
    names = revisions.keys() | routes.keys() | {model_id for model_id, _ in versions}
    models = {
        name: DesiredModel(revisions.get(name, 0), configs.get(name, ModelServingConfig()), tuple(routes.get(name, ())))
        for name in sorted(names)
    }
    return DesiredState(generation, models, versions, tuple(problems))


def _kept_versions(session: Session) -> dict[Key, ModelVersionRow]:
    """Rows of the versions that are routed or asked for. Of a missing row there is nothing to be known."""
    key = tuple_(col(ModelVersionRow.model_id), col(ModelVersionRow.version))
    routed = select(RouteRow.model_id, RouteRow.version)
    desired = select(DesiredVersionRow.model_id, DesiredVersionRow.version)
    rows = session.exec(select(ModelVersionRow).where(or_(key.in_(routed), key.in_(desired))))
    return {(row.model_id, row.version): row for row in rows}


def _routes(session: Session, kept: Mapping[Key, ModelVersionRow], problems: list[str]) -> dict[str, list[Route]]:
    found: dict[str, list[Route]] = {}
    order = (RouteRow.model_id, col(RouteRow.weight).desc(), RouteRow.version)
    for row in session.exec(select(RouteRow).order_by(*order)):
        if (row.model_id, row.version) in kept:
            found.setdefault(row.model_id, []).append(Route(row.version, row.weight))
        else:
            problems.append(f"Version {row.version} of model '{row.model_id}' has a route, but was never prepared.")
    return found


def _configs(session: Session, problems: list[str]) -> dict[str, ModelServingConfig]:
    found: dict[str, ModelServingConfig] = {}
    for row in session.exec(select(ServingConfigRow)):
        try:
            found[row.model_id] = ModelServingConfig(**row.given)
        except (ValidationError, TypeError):
            problems.append(f"The configuration of model '{row.model_id}' cannot be read; defaults are used.")
    return found


def _wanted(
    session: Session, kept: Mapping[Key, ModelVersionRow], routes: Mapping[str, Iterable[Route]]
) -> dict[Key, WantedVersion]:
    asked = {(row.model_id, row.version): row for row in session.exec(select(DesiredVersionRow))}
    routed = {(model_id, route.version) for model_id, each in routes.items() for route in each}
    return {key: _wanted_version(kept[key], asked.get(key), routed=key in routed) for key in sorted(kept)}


def _wanted_version(row: ModelVersionRow, asked: DesiredVersionRow | None, *, routed: bool) -> WantedVersion:
    return WantedVersion(
        model_id=row.model_id,
        version=row.version,
        digest=row.digest,
        signature=row.signature,
        attempt=asked.attempt if asked else 1,
        routed=routed,
        pinned=asked.pinned if asked else False,
        wanted_at=asked.wanted_at.timestamp() if asked else 0.0,
    )


def heartbeat(
    session: Session,
    replica: str,
    *,
    url: str,
    started_at: datetime,
    generation: int,
    revisions: Mapping[str, int],
    workers: Sequence[Mapping[str, Any]],
) -> None:
    """Say that this replica is alive, by the database's clock, and what it has applied."""
    row = {
        "replica": replica,
        "url": url,
        "started_at": started_at,
        "heartbeat_ms": database_now_ms(session),
        "generation": generation,
        "revisions": dict(revisions),
        "workers": [dict(each) for each in workers],
    }
    _upsert(session, ReplicaRow, row, ["replica"])


def say_goodbye(session: Session, replica: str) -> None:
    """This replica ends: it counts as gone at once, not only when its heartbeat has grown old."""
    session.connection().execute(update(ReplicaRow).where(col(ReplicaRow.replica) == replica).values(heartbeat_ms=0))


def read_reports(session: Session, replica: str) -> dict[Key, VersionReport]:
    """What this replica has said of each version."""
    rows = session.exec(select(ReplicaVersionRow).where(ReplicaVersionRow.replica == replica))
    return {(row.model_id, row.version): VersionReport(row.state, row.attempt, row.reason, row.facts) for row in rows}


def report_version(session: Session, replica: str, key: Key, report: VersionReport) -> None:
    """Say what has become of a version here."""
    row = {
        "replica": replica,
        "model_id": key[0],
        "version": key[1],
        "state": report.state,
        "attempt": report.attempt,
        "reason": report.reason,
        "facts": dict(report.facts),
        "changed_at": datetime.now(UTC),
    }
    _upsert(session, ReplicaVersionRow, row, ["replica", "model_id", "version"])


def forget_version(session: Session, replica: str, key: Key) -> None:
    """Say nothing of a version any more: it should not be here."""
    mine = (
        col(ReplicaVersionRow.replica) == replica,
        col(ReplicaVersionRow.model_id) == key[0],
        col(ReplicaVersionRow.version) == key[1],
    )
    session.connection().execute(delete(ReplicaVersionRow).where(*mine))


def _upsert(session: Session, table: type[SQLModel], row: dict[str, Any], key: list[str]) -> None:
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(row)
    changed = {name: statement.excluded[name] for name in row if name not in key}
    session.connection().execute(statement.on_conflict_do_update(index_elements=key, set_=changed))
