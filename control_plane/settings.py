"""All settings of Switchyard: one prefix, one `.env`, each told with where its value comes from."""

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError as SourceError

from control_plane.errors import SettingProblem, SettingsInvalid
from serving.logs import mask
from serving.settings import ServingSettings

PREFIX = "SWITCHYARD_"
# Set by the supervisor for its children: not a setting, and not to be reported as an unknown one.
INTERNAL = frozenset({"SWITCHYARD_STACK_ID"})


class Settings(ServingSettings):
    """The whole list. Every field is documented here and nowhere else; `switchyard settings` prints it."""

    control_plane_port: int = Field(8080, ge=1024, le=65535, description="Port of the control plane's API.")
    prefect_port: int = Field(4200, ge=1024, le=65535, description="Port of the Prefect server and its UI.")
    mlflow_port: int = Field(5000, ge=1024, le=65535, description="Port of the MLflow server and its UI.")
    mlflow_tracking_uri: str | None = Field(
        None,
        description="MLflow server to use instead of our own, e.g. http://mlflow.example:5000. Then none is started.",
    )
    prefect_api_url: str | None = Field(
        None,
        description="Prefect API to use instead of our own, e.g. http://prefect.example:4200/api. Then none is started.",
    )
    prefect_auth_string: SecretStr | None = Field(
        None, description="user:password of the Prefect server, on our own server and for an outside one."
    )
    registry_timeout: float = Field(5.0, gt=0, le=120, description="Seconds that one call to MLflow may take.")
    registry_retries: int = Field(1, ge=0, le=5, description="How often a failed call to MLflow is tried again.")
    allowed_hosts: list[str] = Field(
        [],
        description='Host names, besides localhost and the address bound to, that requests to the control plane may carry, as JSON: ["ml.example"].',
    )
    allowed_origins: list[str] = Field(
        [],
        description='Origins, besides its own, from which a browser may write to the control plane, as JSON: ["https://ml.example"].',
    )
    projection_interval: float = Field(
        2.0, ge=0.1, le=3600, description="Seconds between two looks for aliases that MLflow does not show yet."
    )
    prepare_timeout: float = Field(
        300.0, gt=0, le=86_400, description="Seconds that replicas get to load and warm up a version to be promoted."
    )
    flow_concurrency: int = Field(4, ge=1, le=64, description="Flow runs that the embedded runner executes at once.")
    start_timeout: float = Field(
        180.0, gt=0, le=3600, description="Seconds a process gets to answer after it was started by `switchyard up`."
    )
    stop_timeout: float = Field(20.0, gt=0, le=600, description="Seconds a process gets to end before it is killed.")
    log_max_mb: float = Field(20.0, gt=0, le=10_000, description="Size in MB at which a log file is rotated.")
    log_keep: int = Field(5, ge=1, le=100, description="Rotated log files kept for each process.")
    min_free_disk_mb: int = Field(1000, ge=0, description="Free space in MB below which `switchyard doctor` complains.")

    @property
    def resolved_mlflow_uri(self) -> str:
        """Where the registry answers."""
        return self.mlflow_tracking_uri or f"http://{self.reachable_host}:{self.mlflow_port}"

    @property
    def resolved_prefect_api_url(self) -> str:
        """Where the Prefect API answers."""
        return self.prefect_api_url or f"http://{self.reachable_host}:{self.prefect_port}/api"

    @property
    def data_plane_url(self) -> str:
        """Where the data plane answers."""
        return f"http://{self.reachable_host}:{self.data_plane_port}"

    @property
    def control_plane_url(self) -> str:
        """Where the control plane answers."""
        return f"http://{self.reachable_host}:{self.control_plane_port}"

    @property
    def reachable_host(self) -> str:
        """An address of this machine on which what binds to `host` answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 (read, not bound)
        return f"[{host}]" if ":" in host else host


@dataclass(frozen=True)
class SettingRow:
    """One line of `switchyard settings`."""

    variable: str
    value: str
    origin: str  # "default", "environment" or the path of the .env file
    description: str


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsInvalid: a value is wrong or a `SWITCHYARD_` name is unknown; names all of them at once.
    """
    given = _given()
    problems = [_unknown(name, given) for name in given if not _is_known(name)]
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [_problem(each, given) for each in error.errors()]
    except SourceError as error:
        problems += [_not_json(str(error), given)]
    if problems:
        raise SettingsInvalid(problems)
    return settings


def explain_settings(settings: Settings) -> list[SettingRow]:
    """Every setting with its value and where that comes from; secrets masked."""
    return [_row(settings, name, field) for name, field in Settings.model_fields.items()]


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as variables for a child process, so that it sees what we saw, wherever it runs.

    What was left to its default is passed resolved: left out, the child would take it from its own environment or
    `.env`, and the demo's processes would work on the user's own database, registry and artifacts.
    """
    resolved = {
        "database_url": settings.resolved_database_url,
        "artifact_folder": settings.resolved_artifact_folder,
        "mlflow_tracking_uri": settings.resolved_mlflow_uri,
        "prefect_api_url": settings.resolved_prefect_api_url,
    }
    variables = {}
    for name in Settings.model_fields:
        value = resolved.get(name, getattr(settings, name))
        if value is None:
            continue
        if isinstance(value, SecretStr):
            variables[_variable(name)] = value.get_secret_value()
        elif isinstance(value, list):
            variables[_variable(name)] = json.dumps(value)
        else:
            variables[_variable(name)] = str(value.expanduser().absolute() if isinstance(value, Path) else value)
    return variables


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def _is_known(variable: str) -> bool:
    return variable in INTERNAL or variable.removeprefix(PREFIX).lower() in Settings.model_fields


def _given() -> dict[str, tuple[str, str]]:
    """Every `SWITCHYARD_` variable that is set: upper-case name -> (value, origin). The environment wins."""
    sources: list[tuple[str, Mapping[str, str | None]]] = []
    env_file = Path(".env")
    if env_file.is_file():
        try:
            sources.append((str(env_file.absolute()), dotenv_values(env_file)))
        except (OSError, UnicodeDecodeError) as error:
            problem = SettingProblem(
                ".env", str(env_file.absolute()), None, f"cannot be read ({error})", "it must be UTF-8"
            )
            raise SettingsInvalid([problem]) from error
    sources.append(("environment", os.environ))
    return {
        name.upper(): (value or "", origin)
        for origin, values in sources
        for name, value in values.items()
        # An empty value of a setting that exists counts as not given, for pydantic too (`env_ignore_empty`).
        if name.upper().startswith(PREFIX) and (value or not _is_known(name.upper()))
    }


def _row(settings: Settings, name: str, field: FieldInfo) -> SettingRow:
    value = getattr(settings, name)
    if isinstance(value, SecretStr):
        revealed = mask(value.get_secret_value())
        shown = revealed if "://" in revealed else "***"
    else:
        shown = "" if value is None else mask(str(value))
    _, origin = _given().get(_variable(name), ("", "default"))
    return SettingRow(_variable(name), shown, origin, field.description or "")


def _unknown(variable: str, given: Mapping[str, tuple[str, str]]) -> SettingProblem:
    names = [_variable(name) for name in Settings.model_fields]
    near = difflib.get_close_matches(variable, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "'switchyard settings' lists all that exist"
    return SettingProblem(variable, given[variable][1], None, "unknown setting", hint)


def _problem(error: Any, given: Mapping[str, tuple[str, str]]) -> SettingProblem:
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    value, origin = given.get(_variable(name), ("", "default"))
    secret = "SecretStr" in str(field.annotation)
    return SettingProblem(_variable(name), origin, "***" if secret else value, error["msg"], _allowed(field))


def _not_json(message: str, given: Mapping[str, tuple[str, str]]) -> SettingProblem:
    name = next((name for name in Settings.model_fields if f'"{name}"' in message), "")
    value, origin = given.get(_variable(name), ("", "default"))
    return SettingProblem(_variable(name), origin, value, "not a JSON list", 'a JSON list of texts, such as ["a", "b"]')


def _allowed(field: FieldInfo) -> str:
    """What a field accepts, in words."""
    schema = Settings.__pydantic_core_schema__ and Settings.model_json_schema()["properties"]
    name = next(name for name, each in Settings.model_fields.items() if each is field)
    facts = schema[name]
    kinds = {"integer": "a whole number", "number": "a number", "string": "a text", "array": "a JSON list of texts"}
    if "enum" in facts:
        return "one of " + ", ".join(facts["enum"])
    words = kinds.get(facts.get("type", ""), "a text")
    bounds = [
        (" above ", "exclusiveMinimum"),
        (" of at least ", "minimum"),
        (" below ", "exclusiveMaximum"),
        (" of at most ", "maximum"),
    ]
    limits = [f"{word.strip()} {facts[key]:g}" for word, key in bounds if key in facts]
    return words + (" " + " and ".join(limits) if limits else "")
