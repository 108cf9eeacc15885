"""The processes of one stack: what is started, with which environment, and what must be ready before."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from control_plane.settings import Settings, environment_of
from control_plane.supervision.family import FOLDER_VARIABLE
from control_plane.supervision.readiness import Answers, HasWritten, Readiness

# -P: a folder of the user's that happens to be called "flows" or "secrets" must not be imported instead of the real one.
_PYTHON = (sys.executable, "-P", "-m")

_QUIET = {
    # Their logs go to files: no colours, no waiting in a buffer, no reports to their makers.
    "NO_COLOR": "1",
    "TERM": "dumb",
    "PYTHONUNBUFFERED": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Of our own environment, what would undo that, or name a Prefect profile that our own PREFECT_HOME does not have.
_LEFT_OUT = ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "PREFECT_PROFILE")


@dataclass(frozen=True)
class ProcessSpec:
    """One process: how to start it and how to see that it is ready."""

    name: str  # in logs and on the command line
    title: str  # in sentences and tables
    purpose: str
    command: tuple[str, ...]
    readiness: Readiness
    address: str | None = None  # as shown
    port: int | None = None
    port_setting: str | None = None  # the variable that chooses it
    environment: dict[str, str] = field(default_factory=dict)  # on top of ours
    needs: tuple[str, ...] = ()  # names of the parts that must be ready first, where they are part of the stack
    folder: Path | None = None  # where it runs; None: where we run, so that a relative database path means the same


def stack(settings: Settings) -> list[ProcessSpec]:
    """The processes of `switchyard up`, in the order in which they are shown.

    A registry or Prefect server that the settings place elsewhere is left out.
    """
    specs = [_data_plane(settings), _control_plane(settings)]
    if settings.prefect_api_url is None:
        specs.append(_prefect_server(settings))
    specs.append(_flow_runner(settings))
    if settings.mlflow_tracking_uri is None:
        specs.append(_mlflow_server(settings))
    return specs


def inherited_environment() -> dict[str, str]:
    """Our own environment, less what would put colours into logs."""
    return {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}


def _common(settings: Settings) -> dict[str, str]:
    return environment_of(settings) | _QUIET | {FOLDER_VARIABLE: str(settings.home)}


def _of_prefect(settings: Settings) -> dict[str, str]:
    """What the Prefect server and everybody who talks to it have to know."""
    environment = {
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_API_URL": settings.resolved_prefect_api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_CLI_COLORS": "false",
        "PREFECT_LOGGING_COLORS": "false",
        # The shortest that Prefect allows, seconds: a flow run whose process was killed is found after three of them.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    if settings.prefect_auth_string:
        environment["PREFECT_API_AUTH_STRING"] = settings.prefect_auth_string.get_secret_value()
    return environment


def _data_plane(settings: Settings) -> ProcessSpec:
    return ProcessSpec(
        name="data-plane",
        title="data plane",
        purpose="predictions",
        command=(*_PYTHON, "serving"),
        readiness=Answers(f"{settings.data_plane_url}/health/ready"),
        address=settings.data_plane_url,
        port=settings.data_plane_port,
        port_setting="SWITCHYARD_DATA_PLANE_PORT",
        environment=_common(settings),
    )


def _control_plane(settings: Settings) -> ProcessSpec:
    return ProcessSpec(
        name="control-plane",
        title="control plane",
        purpose="the API; described at /docs",
        command=(*_PYTHON, "control_plane"),
        readiness=Answers(f"{settings.control_plane_url}/health/ready"),
        address=settings.control_plane_url,
        port=settings.control_plane_port,
        port_setting="SWITCHYARD_CONTROL_PLANE_PORT",
        environment=_common(settings) | _of_prefect(settings),
    )


def _prefect_server(settings: Settings) -> ProcessSpec:
    own = {
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # In memory, a restart of the server would leave concurrency slots taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # By default finished flow runs and their logs are never deleted.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    }
    if settings.prefect_auth_string:
        own["PREFECT_SERVER_API_AUTH_STRING"] = settings.prefect_auth_string.get_secret_value()
    return ProcessSpec(
        name="prefect",
        title="Prefect server",
        purpose="flow runs and schedules",
        command=(*_PYTHON, "prefect", "server", "start", "--host", settings.host, "--port", str(settings.prefect_port)),
        readiness=Answers(f"{settings.resolved_prefect_api_url}/health"),
        address=settings.resolved_prefect_api_url.removesuffix("/api"),
        port=settings.prefect_port,
        port_setting="SWITCHYARD_PREFECT_PORT",
        environment=_common(settings) | _of_prefect(settings) | own,
        folder=settings.home / "prefect",
    )


def _flow_runner(settings: Settings) -> ProcessSpec:
    return ProcessSpec(
        name="flows",
        title="flow runner",
        purpose="executes the flow runs",
        command=(*_PYTHON, "flows"),
        readiness=HasWritten(settings.home / "run" / "flows.ready"),
        environment=_common(settings) | _of_prefect(settings),
        needs=("prefect",),
    )


def _mlflow_server(settings: Settings) -> ProcessSpec:
    home = settings.home / "mlflow"
    options = {
        "--host": settings.host,
        "--port": str(settings.mlflow_port),
        "--workers": "1",
        "--artifacts-destination": str(home / "artifacts"),
        # The control plane looks for aliases every other second: a line for each request would be all there is to read.
        "--uvicorn-opts": "--no-access-log",
    }
    command = [*_PYTHON, "control_plane.supervision.mlflow_server", str(home / "mlflow.db"), "--serve-artifacts"]
    for option, value in options.items():
        command += [option, value]
    return ProcessSpec(
        name="mlflow",
        title="MLflow server",
        purpose="model registry",
        command=tuple(command),
        readiness=Answers(f"{settings.resolved_mlflow_uri}/health"),
        address=settings.resolved_mlflow_uri,
        port=settings.mlflow_port,
        port_setting="SWITCHYARD_MLFLOW_PORT",
        # Its job runner is eight more processes and 1.1 GB for features nobody uses here.
        environment=_common(settings) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        folder=home,
    )
