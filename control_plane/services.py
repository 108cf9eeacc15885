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

    def registry_at(self, uri: str) -> Registry:
        """A registry at another address, asked in the same way."""
        return _registry(self.settings, uri)

    def close(self) -> None:
        """Give back connections."""
        self.database.close()


def build_services(settings: Settings) -> Services:
    """Wire the real parts.

    Raises:
        DatabaseUnreachable: the database's address is not one. Whether it answers shows at first use.
    """
    database = open_database(settings.resolved_database_url, settings.database_timeout)
    registry = _registry(settings, settings.resolved_mlflow_uri)
    artifacts = ArtifactStore(settings.resolved_artifact_folder)
    return Services(settings, database, registry, artifacts, VersionManager(database, registry, artifacts))


def _registry(settings: Settings, uri: str) -> MlflowRegistry:
    return MlflowRegistry(uri, timeout=settings.registry_timeout, retries=settings.registry_retries)
