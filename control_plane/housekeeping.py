"""Looking after what is kept: are the bytes whole, is anything left over, is the database tidy."""

import time
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text
from sqlmodel import select

from control_plane.services import Services
from control_plane.storage.installation import read_installation
from serving.errors import ArtifactError, SwitchyardError
from serving.store import ModelVersionRow


@dataclass(frozen=True)
class KeptState:
    """What the bytes of one kept version are worth."""

    model_id: str
    version: str
    state: Literal["whole", "restored", "damaged"]
    detail: str


def verify_kept_versions(services: Services) -> list[KeptState]:
    """Read every kept version whole; what is damaged or lost is fetched again where the registry has the same bytes.

    Raises:
        DatabaseUnavailable: it cannot be known what is kept.
    """
    with services.database.reading() as session:
        kept = list(session.exec(select(ModelVersionRow).order_by(ModelVersionRow.model_id, ModelVersionRow.version)))
    return [_verify(services, row) for row in kept]


def discard_unused_artifacts(services: Services, older_than: float) -> int:
    """Remove half-made copies and folders that no recorded version uses, both at least `older_than` seconds old.

    The age protects a copy that was just made and is about to be recorded. Only what this installation alone kept is
    removed: to a new database in place of a lost one, or to another that shares the folder, everything looks unused.
    """
    removed = services.artifacts.sweep(older_than)
    with services.database.reading() as session:
        used = set(session.exec(select(ModelVersionRow.digest)))
        owner = read_installation(session)
    unused = [digest for digest in services.artifacts.digests() if digest not in used]
    for digest in unused:
        if services.artifacts.is_only_of(digest, owner) and services.artifacts.age(digest) > older_than:
            services.artifacts.discard(digest)
            removed += 1
    return removed


def tidy_database(services: Services) -> str:
    """Statistics for the planner, and on SQLite a short log file; says how long it took."""
    started = time.monotonic()
    statement = "PRAGMA optimize" if services.database.file else "ANALYZE"
    with services.database.translated(), services.database.engine.connect() as connection:
        connection.execute(text(statement))
        connection.commit()
    return f"{statement.lower()} in {time.monotonic() - started:.2f} s"


def _verify(services: Services, row: ModelVersionRow) -> KeptState:
    try:
        services.artifacts.verify(row.digest)
    except ArtifactError as damage:
        return _restore(services, row, damage)
    return KeptState(row.model_id, row.version, "whole", row.digest)


def _restore(services: Services, row: ModelVersionRow, damage: ArtifactError) -> KeptState:
    try:
        services.versions.prepare(row.model_id, row.version)
    except SwitchyardError as error:
        return KeptState(row.model_id, row.version, "damaged", f"{damage.detail} {error.detail}")
    return KeptState(row.model_id, row.version, "restored", damage.detail)
