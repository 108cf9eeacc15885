"""Routes: reading them, and the one fenced function that writes them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from control_plane.errors import FenceLost, RoutesInvalid
from control_plane.storage.aliases import want_aliases
from control_plane.storage.leases import Lease, current_token, holds
from control_plane.storage.tables import RouteWriteRow
from serving.routing import Route, why_invalid
from serving.store.tables import ModelVersionRow, RouteGenerationRow, RouteRow, RoutingRow


def lease_name(model_id: str) -> str:
    """The lease that guards a model's routes."""
    return f"model:{model_id}"


def write_routes(
    session: Session,
    lease: Lease,
    model_id: str,
    routes: Sequence[Route],
    *,
    reason: str,
    aliases: Mapping[str, str | None],
) -> int:
    """Replace the routes of a model, raise the generation that replicas poll, note the aliases to project.

    Everything that changes what serves - test, promotion, rollback - comes through here, inside its own transaction.
    `aliases`: alias -> version, or None for "should not exist"; those not named stay. Returns the new revision.

    Raises:
        FenceLost: the lease is not in force any more, or is another model's; nothing was changed.
        RoutesInvalid: the routes cannot serve; nothing was changed.
    """
    if lease.name != lease_name(model_id) or not holds(session, lease):
        raise FenceLost(model_id, lease.holder, lease.token, current_token(session, lease_name(model_id)))
    _require_servable(session, model_id, routes)
    revision = _next_revision(session, model_id)
    session.connection().execute(delete(RouteRow).where(col(RouteRow.model_id) == model_id))
    session.add_all(RouteRow(model_id=model_id, version=each.version, weight=each.weight) for each in routes)
    session.add(
        RouteWriteRow(
            model_id=model_id,
            revision=revision,
            routes={each.version: each.weight for each in routes},
            holder=lease.holder,
            token=lease.token,
            reason=reason,
            written_at=datetime.now(UTC),
        )
    )
    session.connection().execute(update(RouteGenerationRow).values(value=RouteGenerationRow.value + 1))
    want_aliases(session, model_id, aliases)
    session.flush()
    return revision


def read_routes(session: Session, model_id: str | None = None) -> dict[str, list[Route]]:
    """The routes of every model, or of one: model -> routes, heaviest first. A model without routes is not in it."""
    query = select(RouteRow).order_by(RouteRow.model_id, col(RouteRow.weight).desc(), RouteRow.version)
    if model_id is not None:
        query = query.where(RouteRow.model_id == model_id)
    found: dict[str, list[Route]] = {}
    for row in session.exec(query):
        found.setdefault(row.model_id, []).append(Route(row.version, row.weight))
    return found


def read_generation(session: Session) -> int:
    """Grows with every write of routes, of any model."""
    return session.exec(select(RouteGenerationRow.value)).one()


def _require_servable(session: Session, model_id: str, routes: Sequence[Route]) -> None:
    problem = why_invalid(routes)
    if problem:
        raise RoutesInvalid(model_id, problem)
    kept = set(session.exec(select(ModelVersionRow.version).where(ModelVersionRow.model_id == model_id)))
    missing = sorted({each.version for each in routes} - kept)
    if missing:
        raise RoutesInvalid(model_id, f"not prepared yet: version {', '.join(missing)}")


def _next_revision(session: Session, model_id: str) -> int:
    routing = session.get(RoutingRow, model_id, populate_existing=True)
    if routing is None:
        routing = RoutingRow(model_id=model_id, revision=0, updated_at=datetime.now(UTC))
    routing.revision += 1
    routing.updated_at = datetime.now(UTC)
    session.add(routing)
    session.flush()
    return routing.revision
