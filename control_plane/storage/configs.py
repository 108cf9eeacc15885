"""How each model is served: what was set of its ModelServingConfig."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session, select

from control_plane.storage.replicas import raise_generation
from serving.contracts import ModelServingConfig
from serving.logs import logger
from serving.store.tables import ServingConfigRow

log = logger(__name__)


def read_config(session: Session, model_id: str) -> ModelServingConfig:
    """The configuration in force; defaults for what was never set, or cannot be read."""
    row = session.get(ServingConfigRow, model_id, populate_existing=True)
    return _config_of(row) if row else ModelServingConfig()


def read_configs(session: Session) -> dict[str, ModelServingConfig]:
    """Of every model of which something was set."""
    return {row.model_id: _config_of(row) for row in session.exec(select(ServingConfigRow))}


def _config_of(row: ServingConfigRow) -> ModelServingConfig:
    """Another release may have written what this one does not know: one model's row is no reason to fail the others."""
    try:
        return ModelServingConfig(**row.given)
    except (ValidationError, TypeError) as problem:
        log.warning("a configuration cannot be read, defaults are used", model_id=row.model_id, problem=_named(problem))
        return ModelServingConfig()


def _named(problem: Exception) -> str:
    if isinstance(problem, ValidationError):
        return ", ".join(".".join(map(str, each["loc"])) for each in problem.errors())
    return type(problem).__name__


def write_config(session: Session, model_id: str, given: Mapping[str, Any], by: str) -> ModelServingConfig:
    """Set these fields, valid ones, and let the replicas notice at once. Returns the configuration in force."""
    raise_generation(session)  # first, since it locks: of two writers neither loses what the other has set
    row = session.get(ServingConfigRow, model_id, populate_existing=True)
    if row is None:
        row = ServingConfigRow(model_id=model_id, given={}, updated_at=datetime.now(UTC), updated_by=by)
    row.given = {**row.given, **given}
    row.updated_at, row.updated_by = datetime.now(UTC), by
    session.add(row)
    session.flush()
    return ModelServingConfig(**row.given)
