"""How all models stand, in a few queries, whatever their number."""

from collections.abc import Mapping

from sqlmodel import Session

from control_plane.replicas import LIVE_SECONDS, ModelStatus, status_of
from control_plane.storage.probes import probes_fail, read_probes
from control_plane.storage.replicas import read_replicas, read_revisions
from serving.routing import Route


def read_statuses(session: Session, routes: Mapping[str, list[Route]]) -> dict[str, ModelStatus]:
    """model -> status, of every model that has routes."""
    live = read_replicas(session, within=LIVE_SECONDS)
    revisions = read_revisions(session)
    probes = read_probes(session)
    return {
        model_id: status_of(
            model_id, each, revisions.get(model_id, 0), live, probes_fail=probes_fail(probes.get(model_id), each)
        )
        for model_id, each in routes.items()
    }
