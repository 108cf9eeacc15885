"""The only place where things are wired together. Nothing is opened or asked here; everything is on first use."""

from dataclasses import dataclass

from control_plane.registry import Registry, VersionManager
from control_plane.registry.mlflow_registry import MlflowRegistry
from control_plane.settings import Settings
from serving.artifacts import ArtifactStore
from serving.store import Database, open_database


@dataclass(frozen=True)
class Services:
    """What a process of the control plane works with."""

    settings: Settings
    database: Database
    registry: Registry
    artifacts: ArtifactStore
    versions: VersionManager

    def close(self) -> None:
        """Give back connections."""
        self.database.close()


def build_services(settings: Settings) -> Services:
    """Wire the real parts.

    Raises:
        DatabaseUnreachable: the database's address is not one. Whether it answers shows at first use.
    """
    database = open_database(settings.resolved_database_url, settings.database_timeout)
    registry = MlflowRegistry(
        settings.resolved_mlflow_uri, timeout=settings.registry_timeout, retries=settings.registry_retries
    )
    artifacts = ArtifactStore(settings.resolved_artifact_folder)
    return Services(settings, database, registry, artifacts, VersionManager(database, registry, artifacts))
