"""The last probe of each model."""

from collections.abc import Sequence

from sqlmodel import Session, select

from control_plane.storage.tables import HealthProbeRow
from serving.routing import Route


def read_probe(session: Session, model_id: str) -> HealthProbeRow | None:
    """Of one model."""
    return session.get(HealthProbeRow, model_id, populate_existing=True)


def read_probes(session: Session) -> dict[str, HealthProbeRow]:
    """Of every model that was ever probed."""
    return {row.model_id: row for row in session.exec(select(HealthProbeRow))}


def write_probe(session: Session, row: HealthProbeRow) -> None:
    """In place of the one before."""
    session.merge(row)


def probes_fail(probe: HealthProbeRow | None, routes: Sequence[Route]) -> bool:
    """Whether the probes of what serves fail; those of a version without traffic do not count."""
    return (
        probe is not None and probe.down and any(each.version == probe.version and each.weight > 0 for each in routes)
    )
