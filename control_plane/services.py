"""The only place where things are wired together. Nothing is opened or asked here; everything is on first use."""

import os
import secrets
import socket
from dataclasses import dataclass

from control_plane.data_plane import DataPlane
from control_plane.monitoring import HealthMonitor, StandingReader
from control_plane.preparation import Preparation
from control_plane.registry import Registry, VersionManager
from control_plane.registry.mlflow_registry import MlflowRegistry
from control_plane.replicas import Patience
from control_plane.rollback import ChangeManager, Executor, Pace, TargetChecks
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
    data_plane: DataPlane
    preparation: Preparation
    changes: ChangeManager
    executor: Executor
    standings: StandingReader
    health: HealthMonitor

    def registry_at(self, uri: str) -> Registry:
        """A registry at another address, asked in the same way."""
        return _registry(self.settings, uri)

    def close(self) -> None:
        """Give back connections."""
        self.changes.close()
        self.database.close()


def build_services(settings: Settings) -> Services:
    """Wire the real parts.

    Raises:
        DatabaseUnreachable: the database's address is not one. Whether it answers shows at first use.
    """
    database = open_database(settings.resolved_database_url, settings.database_timeout)
    registry = _registry(settings, settings.resolved_mlflow_uri)
    return wire(settings, database, registry, ArtifactStore(settings.resolved_artifact_folder))


def wire(
    settings: Settings, database: Database, registry: Registry, artifacts: ArtifactStore, pace: Pace | None = None
) -> Services:
    """Wire everything around these parts. `pace`: how fast changes go, where that is not for the settings to say."""
    pace = pace or Pace(patience=Patience(ready=settings.prepare_timeout))
    versions = VersionManager(database, registry, artifacts)
    data_plane = DataPlane(settings.data_plane_url)
    checks = TargetChecks(database, versions)
    return Services(
        settings=settings,
        database=database,
        registry=registry,
        artifacts=artifacts,
        versions=versions,
        data_plane=data_plane,
        preparation=Preparation(database, versions, pace.patience, poll=pace.poll),
        changes=ChangeManager(database, versions, checks, pace.patience, quick=pace.quick),
        executor=Executor(database, checks, pace, _holder()),
        standings=StandingReader(database, artifacts),
        health=HealthMonitor(database, artifacts, data_plane),
    )


def _registry(settings: Settings, uri: str) -> MlflowRegistry:
    return MlflowRegistry(uri, timeout=settings.registry_timeout, retries=settings.registry_retries)


def _holder() -> str:
    """Who we are to other holders of leases. In a container host and process id are the same after every restart."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
