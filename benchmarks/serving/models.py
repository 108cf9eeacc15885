"""The models that everybody serves, the records that everybody is asked, and scikit-learn's own answers to them."""

import atexit
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.serving.environments import CACHE
from examples.flights.data import FEATURES, NUMBERS, load_flights
from examples.flights.training import build_pipeline

RECORDS = 200
_SEED = 20130101
_FLIGHTS = 20_000
_FLIGHTS_CACHE = CACHE / "flights"


@dataclass(frozen=True)
class Version:
    """A fitted classifier, and what scikit-learn answers with it."""

    fitted: Any
    expected: tuple[tuple[float, ...], ...]  # probabilities for each record, in the order of classes


@dataclass(frozen=True)
class BenchModel:
    """A classifier in two versions, with what it is asked. Peers serve the first; ours splits traffic between both."""

    name: str
    title: str
    versions: tuple[Version, Version]
    columns: tuple[str, ...]
    numeric: bool  # every column is a number, so rows may come as an array
    records: tuple[dict[str, Any], ...]

    def expected(self, version: int, record: int) -> tuple[float, ...]:
        """scikit-learn's probabilities; `version` counts from 1, `record` from 0."""
        return self.versions[version - 1].expected[record]

    def pickled(self, folder: Path) -> Path:
        """For servers that take a pickle: the model, its columns, and whether all of them are numbers."""
        file = folder / f"{self.name}.pickle"
        file.write_bytes(pickle.dumps((self.versions[0].fitted, self.columns, self.numeric)))
        return file

    def saved(self, version: int, answers: str = "predict") -> Path:
        """For servers that take a model of MLflow: a folder with signature, gone when this process ends.

        `answers` names the method that MLflow's own server calls.
        """
        room = _room() / f"{self.name}-{version}-{answers}"
        if not room.exists():
            _save(self.versions[version - 1].fitted, pd.DataFrame(list(self.records)), answers, room)
        return room


def _save(fitted: Any, frame: pd.DataFrame, answers: str, room: Path) -> None:
    import mlflow.sklearn  # slow, and only some need it
    from mlflow.models import infer_signature

    mlflow.sklearn.save_model(
        fitted,
        room,
        signature=infer_signature(frame, getattr(fitted, answers)(frame)),
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
        pyfunc_predict_fn=answers,
    )


@cache
def _room() -> Path:
    room = tempfile.mkdtemp(prefix="switchyard-bench-models-")
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return Path(room)


@cache
def logistic_regression() -> BenchModel:
    """30 numeric columns: hardly any work for the model, so what is measured is the server."""
    frame, target = _tumours()
    pipelines = [
        Pipeline([("scale", StandardScaler()), ("model", LogisticRegression(C=strength, max_iter=1_000))])
        for strength in (1.0, 0.3)
    ]
    fitted = [each.fit(frame, target) for each in pipelines]
    return _bench("logistic", "logistic regression, 30 scaled numbers", fitted, frame, numeric=True)


@cache
def random_forest() -> BenchModel:
    """100 trees on the same columns: some milliseconds a call, whatever its size."""
    frame, target = _tumours()
    fitted = [RandomForestClassifier(100, random_state=_SEED + k, n_jobs=1).fit(frame, target) for k in range(2)]
    return _bench("forest", "random forest, 100 trees, 30 numbers", fitted, frame, numeric=True)


@cache
def flights_pipeline() -> BenchModel:
    """The pipeline of examples/flights, trained on two windows of it: 3 strings and 10 numbers into boosted trees."""
    flights = load_flights(_FLIGHTS_CACHE)
    complete = flights.dropna(subset=[*NUMBERS, "late"])  # JSON has no NaN
    fitted = []
    for months in ((1, 2, 3), (4, 5, 6)):
        window = complete[complete["month"].isin(months)].sample(_FLIGHTS, random_state=_SEED)
        fitted.append(build_pipeline("boosting").fit(window[FEATURES], window["late"].astype("int64")))
    asked = complete[complete["month"] == 7].sample(RECORDS, random_state=_SEED)[FEATURES]
    return _bench(
        "flights", "flights: examples/flights, 3 strings, 10 numbers, boosted trees", fitted, asked, numeric=False
    )


MODELS: dict[str, Callable[[], BenchModel]] = {
    "logistic": logistic_regression,
    "flights": flights_pipeline,
    "forest": random_forest,
}


def _bench(name: str, title: str, fitted: Sequence[Any], frame: pd.DataFrame, *, numeric: bool) -> BenchModel:
    asked = frame.head(RECORDS).reset_index(drop=True)
    first, second = (_version(each, asked) for each in fitted)
    return BenchModel(
        name=name,
        title=title,
        versions=(first, second),
        columns=tuple(frame.columns),
        numeric=numeric,
        records=tuple({str(name): value for name, value in each.items()} for each in asked.to_dict("records")),
    )


def _version(fitted: Any, asked: pd.DataFrame) -> Version:
    return Version(fitted, tuple(tuple(float(each) for each in row) for row in fitted.predict_proba(asked)))


def _tumours() -> tuple[pd.DataFrame, Any]:
    table = load_breast_cancer(as_frame=True)
    return table.data.set_axis([name.replace(" ", "_") for name in table.data.columns], axis=1), table.target
