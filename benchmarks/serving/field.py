"""The field: every peer, how it is started as its own documentation shows, and how it is asked there."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import joblib

from benchmarks.serving.candidates import Candidate, Prepared, Said
from benchmarks.serving.environments import python_of
from benchmarks.serving.models import BenchModel
from benchmarks.serving.outcome import Question
from benchmarks.stack import free_ports

_PREPARE = Callable[[BenchModel, Path, int], Prepared]


def asked(path: str, body: Callable[[dict[str, Any]], Any]) -> Callable[[BenchModel], tuple[Question, ...]]:
    """One question per record; `path` may name the model."""

    def ask(model: BenchModel) -> tuple[Question, ...]:
        return tuple(
            Question(path.format(model=model.name), json.dumps(body(record)).encode(), number)
            for number, record in enumerate(model.records)
        )

    return ask


def _file(environment: str, module: str, **variables: str) -> _PREPARE:
    """A peer with a file of its own in `peers/`."""

    def prepare(model: BenchModel, folder: Path, port: int) -> Prepared:
        command = ["-m", f"benchmarks.serving.peers.{module}", str(port), str(model.pickled(folder))]
        return Prepared([str(python_of(environment)), *command], variables)

    return prepare


def _mlserver(model: BenchModel, folder: Path, port: int) -> Prepared:
    joblib.dump(model.versions[0].fitted, folder / "model.joblib")
    grpc, metrics = free_ports(2)
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc, "metrics_port": metrics, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    described = {
        "name": model.name,
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib"},
    }
    (folder / "model-settings.json").write_text(json.dumps(described))
    return Prepared([str(python_of("mlserver").with_name("mlserver")), "start", str(folder)])


def _bentoml(model: BenchModel, folder: Path, port: int) -> Prepared:
    command = str(python_of("bentoml").with_name("bentoml"))
    service = "benchmarks.serving.peers.bentoml_service:Classifier"
    variables = {
        "BENCH_MODEL": str(model.pickled(folder)),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return Prepared([command, "serve", service, "--host", "127.0.0.1", "--port", str(port)], variables)


def _mlflow(model: BenchModel, folder: Path, port: int) -> Prepared:
    python = python_of("mlflow")
    saved = model.saved(1, "predict_proba")
    command = ["models", "serve", "-m", str(saved), "-h", "127.0.0.1", "-p", str(port), "--env-manager", "local"]
    # It starts `uvicorn` by its name. No access log, like the others.
    variables = {"PATH": f"{python.parent}:/usr/bin:/bin", "UVICORN_ACCESS_LOG": "false", "HOME": str(folder)}
    return Prepared([str(python.with_name("mlflow")), *command], variables)


def _record(record: dict[str, Any]) -> Any:
    return {"input_data": record}


def _label_and_probabilities(body: bytes) -> Said:
    return Said(1, probabilities(json.loads(body)))


def probabilities(prediction: Mapping[str, Any]) -> tuple[float, ...]:
    """Of one prediction as most answer it."""
    return tuple(prediction["probabilities"].values())


def _tensor(record: dict[str, Any]) -> Any:
    values = list(record.values())
    tensor = {"name": "rows", "shape": [1, len(values)], "datatype": "FP64", "data": values}
    return {"inputs": [tensor], "outputs": [{"name": "predict_proba"}]}


def _split(record: dict[str, Any]) -> Any:
    return {"dataframe_split": {"columns": list(record), "data": [list(record.values())]}}


_PREDICT = asked("/predict", _record)
_EVERY_MODEL = ("logistic", "flights", "forest")

PEERS = (
    Candidate(
        "litserve", "LitServe, stock", _file("litserve", "litserve_stock"), _PREDICT, _label_and_probabilities,
        in_quick=True,
    ),
    Candidate(
        "mlserver", "MLServer", _mlserver, asked("/v2/models/{model}/infer", _tensor),
        lambda body: Said(1, tuple(json.loads(body)["outputs"][0]["data"])),
    ),
    Candidate(
        "kserve", "KServe SDK", _file("kserve", "kserve_sdk"),
        asked("/v1/models/{model}:predict", lambda record: {"instances": [list(record.values())]}),
        lambda body: Said(1, tuple(json.loads(body)["predictions"][0])),
    ),
    Candidate(
        "bentoml", "BentoML", _bentoml, asked("/predict", lambda record: {"rows": [list(record.values())]}),
        lambda body: Said(1, tuple(json.loads(body)[0])),
    ),
    Candidate(
        # Without this it would keep a secret in the home folder of whoever measures.
        "ray", "Ray Serve", _file("ray", "ray_serve", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0"), _PREDICT,
        _label_and_probabilities,
    ),
    Candidate(
        "mlflow", "mlflow models serve", _mlflow, asked("/invocations", _split),
        lambda body: Said(1, tuple(json.loads(body)["predictions"][0])),
    ),
    Candidate(
        "fastapi-def", "FastAPI, def", _file("fastapi", "fastapi_sync"), _PREDICT, _label_and_probabilities,
        models=_EVERY_MODEL, in_quick=True,
    ),
    Candidate(
        "fastapi-async", "FastAPI, async def", _file("fastapi", "fastapi_async"), _PREDICT, _label_and_probabilities,
        models=_EVERY_MODEL, in_quick=True,
    ),
    Candidate(
        "empty", "empty Starlette route (ceiling)", _file("fastapi", "starlette_empty"), _PREDICT, lambda _: None,
        is_ceiling=True, in_quick=True,
    ),
)  # fmt: skip
"""In the order in which issue and page name them."""

FASTAPI = ("fastapi-def", "fastapi-async")
EMPTY = "empty"
LITSERVE = "litserve"
