"""Models of any other kind, by MLflow's own generic interface: the one place of the data plane that imports MLflow."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serving.contracts import ModelKind


class PyfuncEngine:
    """A generic model. Each of its answers is a JSON value: a field, or a record where it answers with a DataFrame."""

    kind = ModelKind.GENERIC
    name = "pyfunc"
    probabilities = False

    def __init__(self, folder: Path) -> None:
        """Raises whatever MLflow, or what it unpickles, raises."""
        self.classes: list[Any] = []
        self._model = _load(folder)

    def predict(self, model_input: Any, params: dict[str, Any] | None) -> list[Any]:
        """See Engine."""
        rows = next(iter(model_input.values())) if isinstance(model_input, dict) else model_input
        return rows_of(self._model.predict(model_input, params=params), len(rows))


def load_raw(folder: Path) -> Any:
    """The object inside of a model, by way of MLflow, which makes the modules known that lie beside it.

    Raises whatever MLflow, or what it unpickles, raises.
    """
    return _load(folder).get_raw_model()


def _load(folder: Path) -> Any:
    # Only here: it costs seconds and a hundred megabytes, which workers without such models do without.
    import mlflow.pyfunc

    _join_our_log()
    return mlflow.pyfunc.load_model(str(folder))


def rows_of(answer: Any, rows: int) -> list[Any]:
    """What a generic model returned, as one value per row. Raises ValueError when it is not that."""
    found = _listed(answer)
    if found is None:
        raise ValueError(f"returned a {type(answer).__name__}, which has no rows")
    if len(found) != rows:
        raise ValueError(f"returned {len(found)} rows for {rows}")
    return found


def _listed(answer: Any) -> list[Any] | None:
    if isinstance(answer, pd.DataFrame):
        return answer.to_dict("records")
    if isinstance(answer, pd.Series):
        return answer.tolist()
    if hasattr(answer, "toarray"):  # a sparse matrix
        answer = answer.toarray()
    if isinstance(answer, np.ndarray):
        return answer.tolist() if answer.ndim else None
    if isinstance(answer, dict) and answer:
        columns = [_listed(values) for values in answer.values()]
        if any(each is None or len(each) != len(columns[0] or []) for each in columns):
            return None
        return [dict(zip(answer, row, strict=True)) for row in zip(*(each or [] for each in columns), strict=True)]
    return list(answer) if isinstance(answer, list | tuple) else None


def _join_our_log() -> None:
    """MLflow gives its log a handler of its own, which writes lines that are no JSON."""
    theirs = logging.getLogger("mlflow")
    theirs.handlers.clear()
    theirs.propagate = True
