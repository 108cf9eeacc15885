"""Models of any other kind, by MLflow's own generic interface: the one place of the data plane that imports MLflow."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serving.contracts import ModelKind

_INTEGERS = {"integer": np.int32, "long": np.int64}


class PyfuncEngine:
    """A generic model. Each of its answers is a JSON value: a field, or a record where it answers with a DataFrame."""

    kind = ModelKind.GENERIC
    name = "pyfunc"
    probabilities = False

    def __init__(self, folder: Path) -> None:
        """Raises whatever MLflow, or what it unpickles, raises."""
        self.classes: list[Any] = []
        self._model = _load(folder)
        self._optional_integers = dict(_optional_integers(self._model.metadata.get_input_schema()))

    def predict(self, model_input: Any, params: dict[str, Any] | None) -> list[Any]:
        """See Engine.

        MLflow takes rows without an optional column of whole numbers, but none with a gap in it: so rows with a gap are
        asked as rows without that column, apart from the others.
        """
        groups = self._by_gaps(model_input) if isinstance(model_input, pd.DataFrame) else None
        if groups is None:
            rows = next(iter(model_input.values())) if isinstance(model_input, dict) else model_input
            return rows_of(self._model.predict(model_input, params=params), len(rows))
        answers: list[Any] = [None] * len(model_input)
        for places, table in groups:
            for place, answer in zip(
                places, rows_of(self._model.predict(table, params=params), len(table)), strict=True
            ):
                answers[place] = answer
        return answers

    def _by_gaps(self, table: pd.DataFrame) -> list[tuple[list[int], pd.DataFrame]] | None:
        """Places of rows with gaps in the same columns, and those rows without these columns; None without any gap."""
        gaps = table[[name for name in self._optional_integers if name in table]].isna()
        if not gaps.to_numpy().any():
            return None
        groups: dict[tuple[bool, ...], list[int]] = {}
        for place, missing in enumerate(gaps.itertuples(index=False, name=None)):
            groups.setdefault(missing, []).append(place)
        return [(places, self._without(table.iloc[places], gaps.columns, gone)) for gone, places in groups.items()]

    def _without(self, rows: pd.DataFrame, names: Iterable[Any], gone: Iterable[bool]) -> pd.DataFrame:
        pairs = list(zip(names, gone, strict=True))
        there = {name: self._optional_integers[name] for name, is_gone in pairs if not is_gone}
        return rows.drop(columns=[name for name, is_gone in pairs if is_gone]).reset_index(drop=True).astype(there)


def _optional_integers(schema: Any) -> Iterator[tuple[Any, Any]]:
    """Names and dtypes of the columns of whole numbers that rows may do without, by a model's schema of MLflow's."""
    if schema is None or schema.is_tensor_spec() or not schema.has_input_names():
        return
    for column in schema.inputs:
        kind = _INTEGERS.get(getattr(column.type, "name", ""))
        if kind is not None and not column.required:
            yield column.name, kind


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
