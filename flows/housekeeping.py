"""Housekeeping: every kept model proven to the byte, what is left over removed, aliases in MLflow brought up to date.

Each step is one method of the control plane's; the flow shows them as tasks and puts what they found on record.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger
from pydantic import BaseModel, Field


class HousekeepingRequest(BaseModel):
    """What to look after. The defaults do everything and are safe at any time, also while models serve."""

    verify_artifacts: bool = Field(
        True,
        description="Read every byte of every kept model and compare it with the recorded sha256. "
        "What is damaged or lost is fetched again from the registry, if that still delivers the same bytes.",
    )
    discard_unused: bool = Field(
        True, description="Remove half-made copies and model folders that no recorded version uses."
    )
    unused_for_hours: float = Field(
        24.0, ge=1, le=24 * 365, description="How long a folder must have been unused before it is removed."
    )


@contextmanager
def _services() -> Iterator[Any]:
    """The control plane's services. Imported here: a flow module must load quickly, and MLflow takes seconds."""
    from control_plane.services import build_services
    from control_plane.settings import load_settings

    services = build_services(load_settings())
    try:
        yield services
    finally:
        services.close()


@task(task_run_name="verify-artifacts")
def verify_artifacts() -> list[dict[str, str]]:
    """One row a kept version: what its bytes are worth."""
    from control_plane.housekeeping import verify_kept_versions

    with _services() as services:
        return [
            {"model": each.model_id, "version": each.version, "state": each.state, "detail": each.detail}
            for each in verify_kept_versions(services)
        ]


@task(task_run_name="discard-unused")
def discard_unused(hours: float) -> int:
    """How many left-over folders were removed."""
    from control_plane.housekeeping import discard_unused_artifacts

    with _services() as services:
        return discard_unused_artifacts(services, hours * 3600)


@task(task_run_name="project-aliases")
def project_aliases() -> list[dict[str, str]]:
    """Brings MLflow's aliases up to date; one row for each that a person moved."""
    from control_plane.errors import RegistryUnreachable

    with _services() as services:
        try:
            services.versions.project_aliases()
            moves = services.versions.alias_moves()
        except RegistryUnreachable as error:  # the control plane's own loop goes on trying
            get_run_logger().warning("aliases were not looked at: %s", error.detail)
            return []
        return [
            {"model": each.model_id, "alias": each.alias, "ours": each.ours or "-", "theirs": each.theirs or "-"}
            for each in moves
        ]


@task(task_run_name="tidy-database")
def tidy_database() -> str:
    """Lets the database keep its statistics and logs small."""
    from control_plane.housekeeping import tidy_database as tidy

    with _services() as services:
        return tidy(services)


@flow(name="housekeeping", flow_run_name="housekeeping", timeout_seconds=1800, retries=0)
def housekeeping(request: HousekeepingRequest = HousekeepingRequest()) -> dict[str, int]:  # noqa: B008 (never changed; the form shows its fields)
    """Prove every kept model to the byte, remove what is left over, bring MLflow's aliases up to date.

    Fails, and so shows red, when a kept model is damaged and cannot be had again.
    """
    log = get_run_logger()
    versions = verify_artifacts() if request.verify_artifacts else []
    removed = discard_unused(request.unused_for_hours) if request.discard_unused else 0
    moves = project_aliases()
    log.info("database: %s", tidy_database())
    create_table_artifact(key="kept-versions", table=versions, description="Kept models and what their bytes are worth")
    create_table_artifact(key="moved-aliases", table=moves, description="Aliases that a person moved in MLflow")
    bad = [row for row in versions if row["state"] == "damaged"]
    log.info(
        "%d kept versions, %d damaged; %d folders removed; %d aliases moved",
        len(versions),
        len(bad),
        removed,
        len(moves),
    )
    if bad:
        raise RuntimeError("; ".join(f"{row['model']} {row['version']}: {row['detail']}" for row in bad))
    return {"versions": len(versions), "removed": removed, "moved": len(moves)}
