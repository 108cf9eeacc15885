"""The models that everybody serves, the records that everybody is asked, and scikit-learn's own answers to them."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

RECORDS = 200
_SEED = 20130101
_FLIGHTS = 5_000


@dataclass(frozen=True)
class BenchModel:
    """A fitted classifier with what it is asked."""

    name: str
    title: str
    fitted: Any
    columns: tuple[str, ...]
    numeric: bool  # every column is a number, so rows may come as an array
    records: tuple[dict[str, Any], ...]
    expected: tuple[tuple[float, ...], ...]  # scikit-learn's probabilities for each record, in the order of classes

    def pickled(self, folder: Path) -> Path:
        """For servers that take a pickle: the model, its columns, and whether all of them are numbers."""
        file = folder / f"{self.name}.pickle"
        file.write_bytes(pickle.dumps((self.fitted, self.columns, self.numeric)))
        return file

    def saved(self, folder: Path) -> Path:
        """For servers that take a model of MLflow: a folder with signature."""
        import mlflow.sklearn  # slow, and only some need it
        from mlflow.models import infer_signature

        room = folder / f"{self.name}.mlflow"
        frame = pd.DataFrame(list(self.records))
        mlflow.sklearn.save_model(
            self.fitted,
            room,
            signature=infer_signature(frame, self.fitted.predict(frame)),
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )
        return room


def record_body(record: dict[str, Any]) -> bytes:
    """The record as it travels to most servers."""
    return json.dumps({"input_data": record}).encode()


@cache
def logistic_regression() -> BenchModel:
    """30 numeric columns: hardly any work for the model, so what is measured is the server."""
    table = load_breast_cancer(as_frame=True)
    frame = table.data.set_axis([name.replace(" ", "_") for name in table.data.columns], axis=1)
    fitted = Pipeline([("scale", StandardScaler()), ("model", LogisticRegression(max_iter=1_000))])
    return _bench(
        "logistic", "logistic regression, 30 scaled numbers", fitted.fit(frame, table.target), frame, numeric=True
    )


@cache
def random_forest() -> BenchModel:
    """100 trees on the same columns: some milliseconds a call, whatever its size."""
    table = load_breast_cancer(as_frame=True)
    frame = table.data.set_axis([name.replace(" ", "_") for name in table.data.columns], axis=1)
    fitted = RandomForestClassifier(100, random_state=_SEED, n_jobs=1).fit(frame, table.target)
    return _bench("forest", "random forest, 100 trees, 30 numbers", fitted, frame, numeric=True)


@cache
def flights_pipeline() -> BenchModel:
    """Strings and numbers through a ColumnTransformer into boosted trees; the data are made up."""
    frame, late = _made_up_flights()
    strings = ["carrier", "origin", "dest"]
    numbers = [name for name in frame.columns if name not in strings]
    columns = ColumnTransformer(
        [
            ("one_hot", OneHotEncoder(handle_unknown="ignore", sparse_output=False), strings[:2]),
            ("ordinal", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), strings[2:]),
            ("numbers", "passthrough", numbers),
        ]
    )
    model = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=_SEED)
    fitted = Pipeline([("columns", columns), ("model", model)]).fit(frame, late)
    return _bench(
        "flights", "flights: ColumnTransformer, boosted trees, 3 strings, 10 numbers", fitted, frame, numeric=False
    )


MODELS: dict[str, Callable[[], BenchModel]] = {
    "logistic": logistic_regression,
    "flights": flights_pipeline,
    "forest": random_forest,
}


def _bench(name: str, title: str, fitted: Any, frame: pd.DataFrame, *, numeric: bool) -> BenchModel:
    asked = frame.head(RECORDS).reset_index(drop=True)
    probabilities = fitted.predict_proba(asked)
    return BenchModel(
        name=name,
        title=title,
        fitted=fitted,
        columns=tuple(frame.columns),
        numeric=numeric,
        records=tuple({str(name): value for name, value in each.items()} for each in asked.to_dict("records")),
        expected=tuple(tuple(float(each) for each in row) for row in probabilities),
    )


def _made_up_flights() -> tuple[pd.DataFrame, "pd.Series[int]"]:
    chance = np.random.default_rng(_SEED)
    names = (
        "distance",
        "scheduled_minute",
        "temp",
        "dewp",
        "humid",
        "wind_dir",
        "wind_speed",
        "precip",
        "visib",
        "pressure",
    )
    frame = pd.DataFrame({name: chance.normal(50.0, 20.0, _FLIGHTS) for name in names})
    for name, count in (("carrier", 16), ("origin", 3), ("dest", 100)):
        frame[name] = [f"{name[0].upper()}{each}" for each in chance.integers(0, count, _FLIGHTS)]
    score = (frame["precip"] - 50) / 20 + (frame["carrier"] == "C3") - (frame["visib"] - 50) / 40
    return frame, (score + chance.normal(0, 1, _FLIGHTS) > 0.5).astype("int64")
