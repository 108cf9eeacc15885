"""What a data plane finds when it starts, without MLflow and without control plane: database, artifacts, routes."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlmodel import Session

from control_plane.registry.mlflow_registry import describe_model
from control_plane.storage.leases import take_lease
from control_plane.storage.routes import lease_name, write_routes
from control_plane.storage.setup import create_database
from serving.artifacts import ArtifactStore
from serving.contracts import ModelServingConfig
from serving.routing import Route
from serving.store import Database, ModelVersionRow, RouteGenerationRow, open_database
from serving.store.tables import DesiredVersionRow, ServingConfigRow

_HOLDER = "house"
_LEASE_SECONDS = 60.0
_LOCK_SECONDS = 10.0


class House:
    """A database and an artifact store of their own, and the rows through which a control plane would speak."""

    def __init__(self, folder: Path) -> None:
        """Creates both below `folder`. Close it at the end."""
        self.home = folder / "home"
        self.database_file = self.home / "switchyard.db"
        self.database_url = f"sqlite:///{self.database_file}"
        create_database(self.database_url, _LOCK_SECONDS)
        self.database: Database = open_database(self.database_url, _LOCK_SECONDS)
        self.artifacts = ArtifactStore(self.home / "artifacts")

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    @property
    def settings(self) -> dict[str, str]:
        """What a data plane has to be told to live here."""
        return {
            "data_folder": str(self.home),
            "database_url": self.database_url,
            "artifact_folder": str(self.artifacts.root),
        }

    def keep(self, model: Path, model_id: str, version: str) -> str:
        """Keep a folder that MLflow saved as this version; its digest."""
        artifact = self.artifacts.put(lambda room: shutil.copytree(model, room, dirs_exist_ok=True), _HOLDER)
        signature, _ = describe_model(artifact.folder)
        now = datetime.now(UTC)
        with self.database.writing() as session:
            session.add(
                ModelVersionRow(
                    model_id=model_id,
                    version=version,
                    digest=artifact.digest,
                    size_bytes=artifact.size_bytes,
                    identity=f"models:/m-{model_id}-{version}",
                    tags={},
                    metrics={},
                    signature=signature,
                    created_at=now,
                    kept_at=now,
                )
            )
        return artifact.digest

    def want(self, model_id: str, version: str) -> int:
        """Have every replica hold this kept version, or load it anew; the number of the attempt."""
        with self.database.writing() as session:
            row = session.get(DesiredVersionRow, (model_id, version))
            if row is None:
                row = DesiredVersionRow(model_id=model_id, version=version, attempt=0, wanted_at=datetime.now(UTC))
            row.attempt += 1
            session.add(row)
            _raise_generation(session)
        return row.attempt

    def route(self, model_id: str, weights: Mapping[str, float]) -> int:
        """Write these routes, version -> weight; their revision. Does not wait for anybody to hold the versions."""
        routes = [Route(version, weight) for version, weight in weights.items()]
        with self.database.writing() as session:
            lease = take_lease(session, lease_name(model_id), _HOLDER, _LEASE_SECONDS)
            return write_routes(session, lease, model_id, routes, reason="house", aliases={})

    def configure(self, model_id: str, **fields: Any) -> None:
        """Set these fields of the model's ModelServingConfig; the others keep their defaults."""
        ModelServingConfig(**fields)
        with self.database.writing() as session:
            session.merge(
                ServingConfigRow(model_id=model_id, given=fields, updated_at=datetime.now(UTC), updated_by=_HOLDER)
            )
            _raise_generation(session)


def _raise_generation(session: Session) -> None:
    session.connection().execute(update(RouteGenerationRow).values(value=RouteGenerationRow.value + 1))
