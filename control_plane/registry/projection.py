"""Aliases: making MLflow say what our database says, and noticing when a person made it say something else."""

from dataclasses import dataclass

from control_plane.errors import RegistryError, RegistryUnreachable
from control_plane.registry.gateway import Registry
from control_plane.storage.aliases import confirm_alias, doubt_alias, fail_alias, pending_aliases, settled_aliases
from control_plane.storage.tables import AliasProjectionRow
from serving.logs import logger
from serving.store import Database

log = logger(__name__)


@dataclass(frozen=True)
class AliasMove:
    """Somebody moved an alias in MLflow away from the last value we wrote."""

    model_id: str
    alias: str
    ours: str | None  # version
    theirs: str | None  # version; None: the alias was removed


def project_aliases(database: Database, registry: Registry) -> int:
    """Write to MLflow what it does not show yet; returns how many aliases were settled.

    Safe to repeat and to interrupt: an alias stays pending until MLflow confirmed it.

    Raises:
        RegistryUnreachable: nothing further was tried.
        DatabaseUnavailable: what was written will be written again.
    """
    with database.reading() as session:
        pending = pending_aliases(session)
    return sum(_project(database, registry, row) for row in pending)


def find_alias_moves(database: Database, registry: Registry) -> list[AliasMove]:
    """Aliases that a person moved. One that is still pending is ours to write, whatever MLflow says.

    Raises:
        RegistryUnreachable: nobody can tell.
    """
    with database.reading() as session:
        settled = settled_aliases(session)
    shown = {model_id: registry.aliases(model_id) for model_id in {row.model_id for row in settled}}
    return [
        AliasMove(row.model_id, row.alias, row.written, shown[row.model_id].get(row.alias))
        for row in settled
        if shown[row.model_id].get(row.alias) != row.written
    ]


def _project(database: Database, registry: Registry, row: AliasProjectionRow) -> bool:
    try:
        _write(registry, row)
    except RegistryUnreachable:
        raise
    except RegistryError as error:
        if error.detail != row.problem:  # once, not at every attempt
            log.warning("alias not projected", model_id=row.model_id, alias=row.alias, problem=error.detail)
        with database.writing() as session:
            fail_alias(session, row, error.detail)
        return False
    with database.writing() as session:
        if confirm_alias(session, row):
            return True
        doubt_alias(session, row)
        return False


def _write(registry: Registry, row: AliasProjectionRow) -> None:
    if row.wanted is None:
        registry.delete_alias(row.model_id, row.alias)
    else:
        registry.set_alias(row.model_id, row.alias, row.wanted)
