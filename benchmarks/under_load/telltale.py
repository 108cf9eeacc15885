"""Models whose answer tells which model and version gave it, and to what: nobody else's answer can pass for it."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from benchmarks.under_load.exchange import Question

_A, _B = 1e3, 1.0
_PER_MODEL, _PER_VERSION = 1e12, 1e9
MOST_A, MOST_B = 1_000_000, 1_000
"""Values are whole numbers below these: every sum is exact in a float64, and each differs from every other."""


def value_of(model: int, version: int, a: int, b: int) -> float:
    """What version `version` of telltale number `model` answers to a row."""
    return model * _PER_MODEL + version * _PER_VERSION + a * _A + b * _B


def save_telltale(folder: Path, model: int, version: int, seconds: float = 0.0) -> Path:
    """As MLflow saves it; see `telltale`."""
    return save(folder / f"telltale-{model}-{version}", telltale(model, version, seconds))


def telltale(model: int, version: int, seconds: float = 0.0) -> Any:
    """A linear regression of scikit-learn that answers `value_of`; a call takes `seconds`, at least."""
    from sklearn.linear_model import LinearRegression  # slow, as MLflow is, and only whoever saves one needs it

    # A class inside a function is pickled whole, so that it loads where this module is not.
    class Slow(LinearRegression):  # type: ignore[misc]
        def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
            time.sleep(seconds)
            return super().predict(X)

    fitted = (Slow if seconds else LinearRegression)().fit(
        pd.DataFrame({"a": [0.0, 1.0, 0.0], "b": [0.0, 0.0, 1.0]}), [0.0, _A, _B]
    )
    fitted.coef_, fitted.intercept_ = np.array([_A, _B]), value_of(model, version, 0, 0)
    return fitted


def save(room: Path, fitted: Any) -> Path:
    """A model of two columns `a` and `b`, as MLflow saves it."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    mlflow.sklearn.save_model(fitted, room, **_saved(infer_signature))
    return room


def register(mlflow_url: str, model_id: str, fitted: Any) -> str:
    """Register a model of two columns `a` and `b` with an MLflow server; its version."""
    import mlflow
    import mlflow.sklearn
    from mlflow.models import infer_signature

    mlflow.set_tracking_uri(mlflow_url)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(fitted, name="model", registered_model_name=model_id, **_saved(infer_signature))
    return str(info.registered_model_version)


def _saved(infer_signature: Any) -> dict[str, Any]:
    """How MLflow is to save it."""
    logging.getLogger("mlflow.sklearn").setLevel(logging.ERROR)  # it warns of pickles each time; these are ours
    rows = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    return {
        "signature": infer_signature(rows, np.array([1.0, 2.0])),
        "serialization_format": "cloudpickle",
        "pip_requirements": ["scikit-learn"],
    }


def predict_path(model_id: str) -> str:
    return f"/ml/models/{model_id}/predict"


def telltale_question(
    model_id: str, model: int, rows: Sequence[tuple[int, int]], *, turned: bool = False, deadline: float = 30.0
) -> Question:
    """Ask telltale number `model`, served as `model_id`; `turned`: with the columns in the other order."""
    columns = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    names = ["b", "a"] if turned else ["a", "b"]

    def find_fault(answer: dict[str, Any]) -> str | None:
        said = [each["value"] for each in answer["predictions"]]
        version = int(answer["model_version"])
        expected = [value_of(model, version, a, b) for a, b in rows]
        return None if said == expected else f"version {version} answered {said[:3]}, which is not {expected[:3]}"

    body = orjson.dumps({"input_data": {name: columns[name] for name in names}})
    return Question(predict_path(model_id), body, find_fault, deadline)


def numbered_question(model_id: str, model: int, number: int, deadline: float = 30.0) -> Question:
    """One row that no other number asks for (below 10^9)."""
    rows = [(number // MOST_B % MOST_A, number % MOST_B)]
    return telltale_question(model_id, model, rows, turned=number % 2 == 1, deadline=deadline)
