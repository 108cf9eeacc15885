"""Warm-up: a version loaded and warmed on every replica, the timings on record. It gets no traffic by that.

What is done is the control plane's preparation, as a promotion does it too; the flow shows it and puts it on record.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Failed
from pydantic import BaseModel, ConfigDict, Field

from serving.errors import SwitchyardError

Row = dict[str, Any]

_SILENT: Row = {"state": "waiting"}  # a replica that came while others loaded
_REFUSED = ("failed", "evicted")
_NOBODY = "waiting for a replica, none is alive"


class WarmUpRequest(BaseModel):
    """Which version to load and warm. Safe at any time: what serves goes on serving, and no traffic moves."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str = Field(
        title="Model",
        description="Name of a registered model. The choices are those there are; a new one appears within a minute.",
    )
    target: str = Field(
        "champion",
        title="Version",
        description="A version number such as 3, or an alias such as champion. What it means is looked up when the run "
        "starts; a wrong one fails the run at once and is answered with the ones there are.",
    )
    anew: bool = Field(
        True,
        title="Load anew",
        description="Load the version again even where it is loaded already, so that the timings are fresh. "
        "Otherwise replicas that all hold it are left alone, and what they measured then is shown.",
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


@task(task_run_name="find-{target}")
def find_version(model_id: str, target: str) -> str | State[Any]:
    """The version number that is meant, its bytes kept and proven; or Failed, with the words of what is wrong.

    A refusal is a state and not an exception: Prefect would log fifty lines of our code above the one that helps.
    """
    with _services() as services:
        try:
            version = services.versions.resolve(model_id, target)
            services.versions.prepare(model_id, version)
        except SwitchyardError as error:
            return Failed(message=error.detail)
        return str(version)


@task(task_run_name="warm-{version}")
def warm_everywhere(model_id: str, version: str, *, anew: bool) -> tuple[str | None, list[Row]] | State[Any]:
    """Why it is not ready everywhere (None: it is), and a row for each worker of each live replica.

    Failed where it cannot be asked for at all, as with the database away.
    """
    with _services() as services:
        try:
            return _warm(services, model_id, version, anew=anew)
        except SwitchyardError as error:
            return Failed(message=error.detail)


def _warm(services: Any, model_id: str, version: str, *, anew: bool) -> tuple[str | None, list[Row]]:
    from control_plane.preparation import live_replicas

    with services.database.reading() as session:
        live = live_replicas(session)
    if not anew and live and all(_is_ready(each, model_id, version) for each in live):
        return None, [row for each in live for row in _rows(each, model_id, version, {"state": "ready"})]
    progress = services.preparation.prepare(model_id, version, _Shown(f"{model_id} {version}")).progress
    with services.database.reading() as session:
        live = live_replicas(session)
    # What the verdict was drawn from: a version that was refused may be gone from the database by now.
    rows = [
        row for each in live for row in _rows(each, model_id, version, progress.replicas.get(each.replica, _SILENT))
    ]
    return _why_not(progress), rows


def _is_ready(replica: Any, model_id: str, version: str) -> bool:
    """Whether its last attempt succeeded, so that there are timings. One that failed since may answer all the same."""
    held = replica.versions.get((model_id, version))
    return held is not None and held.state == "ready"


def _why_not(progress: Any) -> str | None:
    """For a state, which Prefect logs. A replica's own words may quote the model's example: they stand in the table."""
    if progress.verdict == "done":
        return None
    refused = sorted(name for name, said in progress.replicas.items() if said["state"] in _REFUSED)
    if not refused:
        return str(progress.reason)
    return f"it cannot be loaded by {', '.join(refused)}. The run's artifact 'warm-up' says why."


class _Shown:
    """Progress as Prefect shows it, told only when it has moved: it is looked for ten times a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._artifact: UUID | None = None
        self._percent = -1.0
        self._said: dict[str, str] | None = None
        self._log = get_run_logger()

    def __call__(self, progress: Any) -> None:
        said = {name: each["state"] for name, each in progress.replicas.items()}
        if said != self._said:
            self._said = said
            self._log.info("%s: %s", self._name, ", ".join(f"{who} {state}" for who, state in said.items()) or _NOBODY)
        self._show(list(said.values()))

    def _show(self, states: list[str]) -> None:
        weights = {"ready": 1.0, "loading": 0.5}
        percent = round(100 * sum(weights.get(each, 0.0) for each in states) / len(states), 1) if states else 0.0
        if percent == self._percent:
            return
        self._percent = percent
        if self._artifact is None:
            description = f"Replicas on which {self._name} is ready"
            self._artifact = create_progress_artifact(percent, "warm-up-progress", description)  # type: ignore[assignment]
        else:
            update_progress_artifact(self._artifact, percent)


def _rows(replica: Any, model_id: str, version: str, said: Row) -> list[Row]:
    """What a replica `said` of a version: a row for each worker; one without timings where it is not ready."""
    held = replica.versions.get((model_id, version))
    row = {"replica": replica.replica, "worker": "-", "state": said["state"], **_timings({})}
    if held is None or said["state"] != "ready":
        return [{**row, "reason": said.get("reason", "-")}]
    workers = held.facts.get("workers") or [{**held.facts, "worker": "-"}]
    return [{**row, "worker": _name(each), **_timings(each), "reason": "-"} for each in workers]


def _name(worker: Row) -> str:
    return f"{worker['worker']} (spare)" if worker.get("spare") else str(worker["worker"])


def _timings(facts: Row) -> Row:
    """Readable; a dash where nothing was measured."""
    warm = [1000 * each for each in facts.get("warmup_seconds") or []]
    load, memory = facts.get("load_seconds"), facts.get("memory_mb")
    return {
        "load s": _figure(load, 3),
        "first ms": _figure(warm[0] if warm else None, 2),
        "median ms": _figure(median(warm) if warm else None, 2),
        "last ms": _figure(warm[-1] if warm else None, 2),
        "memory MB": _figure(memory, 1),
    }


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


@flow(name="warm-up", flow_run_name="warm-up-{request.model_id}-{request.target}", timeout_seconds=3600, retries=0)
def warm_up(request: WarmUpRequest) -> dict[str, Any] | State[Any]:
    """Load and warm a version on every replica, and record how long each worker took.

    Fails, and so shows red, with the reason, when there is no such version or no replica is alive; and when one of them
    cannot load it, with the reason in the table. Run again it loads again, and harms nothing.
    """
    log = get_run_logger()
    found: State[Any] = find_version(request.model_id, request.target, return_state=True)
    if not found.is_completed():
        return Failed(message=found.message)
    version: str = found.result()
    warmed: State[Any] = warm_everywhere(request.model_id, version, anew=request.anew, return_state=True)
    if not warmed.is_completed():
        return Failed(message=warmed.message)
    reason, rows = warmed.result()
    title = f"Version {version} of {request.model_id} on each worker: loading, and its warm-up predictions"
    create_table_artifact(key="warm-up", table=rows, description=title)
    replicas = len({row["replica"] for row in rows})
    if reason is not None:
        return Failed(message=f"Version {version} of {request.model_id} is not ready everywhere: {reason}")
    log.info("version %s of %s is ready: replicas %d, workers %d", version, request.model_id, replicas, len(rows))
    return {"version": version, "replicas": replicas, "workers": len(rows)}
