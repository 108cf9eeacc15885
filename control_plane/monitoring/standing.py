"""How a model stands: routes, replicas, the change under way, probes. From our database alone."""

from dataclasses import dataclass

from sqlmodel import Session, select

from control_plane.replicas import ModelStatus, Replica, status_of
from control_plane.storage.changes import change_under_way, last_known_good, steps_of
from control_plane.storage.configs import read_config
from control_plane.storage.probes import probes_fail, read_probe
from control_plane.storage.replicas import read_replicas
from control_plane.storage.routes import read_routes
from control_plane.storage.tables import ChangeRow, ChangeStepRow, HealthProbeRow
from serving.artifacts import ArtifactStore
from serving.contracts import ModelServingConfig
from serving.routing import Route
from serving.store import Database, ModelVersionRow, RoutingRow
from serving.store.tables import ServingConfigRow

RECENT_SECONDS = 900.0
"""Dead replicas are shown for this long after their last heartbeat."""


@dataclass(frozen=True)
class LastKnownGood:
    """The latest version that a change succeeded with and that has no traffic now; our copy of it is still here."""

    version: str
    change_id: str
    is_warm: bool  # loaded on every live replica, so that it could serve at once


@dataclass(frozen=True)
class ModelStanding:
    """Everything that is known of how one model is served."""

    model_id: str
    status: ModelStatus
    revision: int  # of its routes; 0: it was never routed
    routes: list[Route]  # heaviest first
    replicas: list[Replica]  # live ones, and those that died a short while ago
    change: tuple[ChangeRow, list[ChangeStepRow]] | None  # the one under way
    last_known_good: LastKnownGood | None
    config: ModelServingConfig  # in force, with the path and number of the serving version
    probe: HealthProbeRow | None


class StandingReader:
    """Reads how models stand, and sets nothing."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    def is_known(self, model_id: str) -> bool:
        """Whether our database has anything of this model; the registry may have one that it has not.

        Raises:
            DatabaseUnavailable: it cannot be known.
        """
        with self._database.reading() as session:
            if session.get(RoutingRow, model_id) or session.get(ServingConfigRow, model_id):
                return True
            kept = select(ModelVersionRow.version).where(ModelVersionRow.model_id == model_id).limit(1)
            return session.exec(kept).first() is not None

    def read(self, model_id: str) -> ModelStanding:
        """How it stands now; one of which nothing is known is unserved.

        Raises:
            DatabaseUnavailable: it cannot be known.
        """
        with self._database.reading() as session:
            routes = read_routes(session, model_id).get(model_id, [])
            routing = session.get(RoutingRow, model_id)
            revision = routing.revision if routing else 0
            replicas = read_replicas(session, within=RECENT_SECONDS)
            probe = read_probe(session, model_id)
            status = status_of(model_id, routes, revision, replicas, probes_fail=probes_fail(probe, routes))
            change = change_under_way(session, model_id)
            return ModelStanding(
                model_id=model_id,
                status=status,
                revision=revision,
                routes=routes,
                replicas=replicas,
                change=(change, steps_of(session, [change.id])[change.id]) if change else None,
                last_known_good=_last_known_good(session, model_id, replicas),
                config=self._config(session, model_id, routes),
                probe=probe,
            )

    def config(self, model_id: str) -> ModelServingConfig:
        """The configuration in force, with the path and number of the serving version.

        Raises:
            DatabaseUnavailable: it cannot be known.
        """
        with self._database.reading() as session:
            return self._config(session, model_id, read_routes(session, model_id).get(model_id, []))

    def _config(self, session: Session, model_id: str, routes: list[Route]) -> ModelServingConfig:
        config = read_config(session, model_id)
        if not routes:
            return config
        version = session.get(ModelVersionRow, (model_id, routes[0].version))
        artifact = self._artifacts.find(version.digest) if version else None
        path = str(artifact.folder) if artifact else ""
        return config.model_copy(update={"model_path": path, "model_version": routes[0].version})


def _last_known_good(session: Session, model_id: str, replicas: list[Replica]) -> LastKnownGood | None:
    found = last_known_good(session, model_id)
    if found is None:
        return None
    version, change_id = found
    live = [each for each in replicas if each.is_live]
    is_warm = bool(live) and all(each.holds(model_id, version) for each in live)
    return LastKnownGood(version, change_id, is_warm)
