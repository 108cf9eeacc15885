"""What computes: scikit-learn's estimators and LightGBM's boosters, called as they are, without MLflow around them."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor

from serving.contracts import ModelKind
from serving.errors import ModelNotLoadable

Predicted = NDArray[np.float64] | list[Any]
"""Answers, one per row: numbers as an ANSWER frame carries them, or JSON values. Slices of it are answers again."""

# Their label is where the probability is largest, by their own code, except where two are as good as equal.
_LABEL_BY_ARGMAX = {
    "LogisticRegression",
    "LogisticRegressionCV",
    "DecisionTreeClassifier",
    "ExtraTreeClassifier",
    "RandomForestClassifier",
    "ExtraTreesClassifier",
    "HistGradientBoostingClassifier",
    "GradientBoostingClassifier",
    "CalibratedClassifierCV",
    "GaussianNB",
    "LGBMClassifier",
}
_AS_GOOD_AS_EQUAL = 1e-9
# Code that goes by positions where there are no names. A ColumnTransformer of names does not; anybody else's may not.
_KNOWN_PACKAGES = ("sklearn.", "lightgbm.")


class Engine(Protocol):
    """A loaded model that answers rows."""

    name: str  # "sklearn", "lightgbm" or "pyfunc"
    kind: ModelKind
    classes: list[Any]  # JSON values; empty unless it is a classifier
    probabilities: bool

    def predict(self, model_input: Any, params: dict[str, Any] | None) -> Predicted:
        """One answer per row. Raises whatever the model raises, and ValueError when it answers another number of rows."""
        ...


class ClassifierEngine:
    """An estimator with classes. Row of its answer: index of the label, then the probabilities where it has them."""

    kind = ModelKind.CLASSIFIER

    def __init__(self, estimator: Any, name: str) -> None:
        self.name = name
        self.classes: list[Any] = np.asarray(estimator.classes_).tolist()
        self.probabilities = hasattr(estimator, "predict_proba")
        self.label_by_argmax = False
        """Whether the label is taken from the probabilities. Set it only after `argmax_agrees`."""
        self._estimator = estimator
        self._index = {label: index for index, label in enumerate(self.classes)}

    def predict(self, model_input: Any, params: dict[str, Any] | None) -> Predicted:  # noqa: ARG002  # see Engine
        """See Engine."""
        rows = len(model_input)
        model_input = _taken(self.name, model_input)
        if not self.probabilities:
            return self._labels(model_input, rows).reshape(rows, 1)
        answer = np.empty((rows, 1 + len(self.classes)))
        answer[:, 1:] = shares = _counted(self._estimator.predict_proba(model_input), rows)
        best = shares.argmax(axis=1)
        sure = self.label_by_argmax and _is_clear(shares)
        answer[:, 0] = best if sure else self._labels(model_input, rows)
        return answer

    def argmax_agrees(self, model_input: Any) -> bool:
        """Whether this estimator's label is known to be its most probable class, and is so on these rows."""
        if not self.probabilities or _last_step(self._estimator).__class__.__name__ not in _LABEL_BY_ARGMAX:
            return False
        if not _is_known(_last_step(self._estimator)):
            return False
        best = np.asarray(self._estimator.predict_proba(model_input)).argmax(axis=1)
        return bool((best == self._labels(model_input, len(model_input))).all())

    def _labels(self, model_input: Any, rows: int) -> NDArray[np.float64]:
        labels = _counted(self._estimator.predict(model_input), rows)
        return np.array([self._index[label] for label in labels.tolist()], np.float64)


class RegressorEngine:
    """An estimator whose answers are numbers: one per row, or one for each of its outputs."""

    kind = ModelKind.REGRESSOR
    probabilities = False

    def __init__(self, estimator: Any, name: str) -> None:
        self.name = name
        self.classes: list[Any] = []
        self._estimator = estimator

    def predict(self, model_input: Any, params: dict[str, Any] | None) -> Predicted:  # noqa: ARG002  # see Engine
        """See Engine."""
        rows = len(model_input)
        model_input = _taken(self.name, model_input)
        return _counted(self._estimator.predict(model_input), rows).astype(np.float64, copy=False).reshape(rows, -1)


class ValuesEngine:
    """An estimator that is neither, such as a clustering, or a classifier of several outputs: its answers as they are."""

    kind = ModelKind.GENERIC
    probabilities = False

    def __init__(self, estimator: Any, name: str) -> None:
        self.name = name
        self.classes: list[Any] = []
        self._estimator = estimator

    def predict(self, model_input: Any, params: dict[str, Any] | None) -> Predicted:  # noqa: ARG002  # see Engine
        """See Engine."""
        table = _taken(self.name, model_input)
        listed: list[Any] = _counted(self._estimator.predict(table), len(model_input)).tolist()
        return listed


class BoosterEngine:
    """LightGBM's own Booster as a classifier: it answers with the probability of its second class, or of each."""

    kind = ModelKind.CLASSIFIER
    name = "lightgbm"
    probabilities = True

    def __init__(self, booster: Any, classes: int) -> None:
        self.classes: list[Any] = list(range(classes))
        self._booster = booster

    def predict(self, model_input: Any, params: dict[str, Any] | None) -> Predicted:  # noqa: ARG002  # see Engine
        """See Engine."""
        rows = len(model_input)
        shares = _counted(self._booster.predict(_taken(self.name, model_input)), rows)
        if shares.ndim == 1:
            shares = np.column_stack([1.0 - shares, shares])
        answer = np.empty((rows, 1 + len(self.classes)))
        answer[:, 0] = shares.argmax(axis=1)
        answer[:, 1:] = shares
        return answer


def engine_of_estimator(estimator: Any, name: str) -> Engine:
    """The engine for an estimator of scikit-learn, or one that behaves like it. Raises ModelNotLoadable."""
    if not hasattr(estimator, "predict"):
        raise ModelNotLoadable(f"{type(estimator).__name__} has no method predict, so it answers nothing")
    _use_one_core(estimator)
    if is_classifier(estimator) and _has_plain_classes(estimator):
        return ClassifierEngine(estimator, name)
    return RegressorEngine(estimator, name) if is_regressor(estimator) else ValuesEngine(estimator, name)


def engine_of_booster(booster: Any) -> Engine:
    """The engine for LightGBM's Booster, by the objective it was trained for."""
    objective = str(booster.dump_model(num_iteration=1).get("objective", "")).split(" ")
    if objective[0] == "binary":
        return BoosterEngine(booster, 2)
    if objective[0].startswith("multiclass"):
        return BoosterEngine(booster, booster.num_model_per_iteration())
    return RegressorEngine(booster, "lightgbm")


def why_needs_names(model: Any, names: list[Any]) -> str | None:
    """Why arrays instead of DataFrames with these columns might be answered differently; None where they are not."""
    for part in _parts(model):
        kind = type(part).__name__
        if not _is_known(part):
            return f"{kind} is not scikit-learn's own and may go by names"
        if kind == "ColumnTransformer":
            return "its ColumnTransformer goes by names"
        if part is model and not _same_names(getattr(part, "feature_names_in_", None), names):
            return "its columns are not in the signature's order"
    return "it has categories of pandas" if getattr(model, "pandas_categorical", None) else None


def _same_names(fitted: Any, names: list[Any]) -> bool:
    # LightGBM keeps names with their spaces replaced.
    return fitted is None or [str(each).replace(" ", "_") for each in fitted] == [
        str(n).replace(" ", "_") for n in names
    ]


def _parts(model: Any) -> Iterator[Any]:
    """The model, and the steps of it where it is a pipeline, those of its steps too."""
    yield model
    for _, step in getattr(model, "steps", []):
        if step is not None and not isinstance(step, str):
            yield from _parts(step)


def _last_step(estimator: Any) -> Any:
    return _last_step(estimator.steps[-1][1]) if hasattr(estimator, "steps") else estimator


def _is_known(part: Any) -> bool:
    return type(part).__module__.startswith(_KNOWN_PACKAGES)


def _has_plain_classes(estimator: Any) -> bool:
    """Whether it has one list of classes, each of which JSON can carry."""
    classes = getattr(estimator, "classes_", None)
    if not isinstance(classes, np.ndarray) or classes.ndim != 1:
        return False
    return all(isinstance(each, str | bool | int | float) for each in classes.tolist())


def _use_one_core(estimator: Any) -> None:
    # A pool of threads for some dozens of rows costs milliseconds, and other workers want the cores too.
    if _is_known(estimator) and hasattr(estimator, "get_params"):
        spread = [name for name in estimator.get_params() if name == "n_jobs" or name.endswith("__n_jobs")]
        estimator.set_params(**dict.fromkeys(spread, 1))


def _taken(name: str, model_input: Any) -> Any:
    """As this engine takes it: LightGBM knows gaps among numbers, and refuses a column of truth values with gaps."""
    if name != "lightgbm" or not isinstance(model_input, pd.DataFrame):
        return model_input
    mixed = [
        column
        for column, dtype in model_input.dtypes.items()
        if dtype.kind == "O" and all(each is None or isinstance(each, bool) for each in model_input[column])
    ]
    return model_input.astype(dict.fromkeys(mixed, np.float64)) if mixed else model_input


def _counted(answer: Any, rows: int) -> NDArray[Any]:
    """The answer as an array, if it is one per row."""
    array = np.asarray(answer)
    found = array.shape[0] if array.ndim else 1
    if found != rows or not array.ndim:
        raise ValueError(f"returned {found} rows for {rows}")
    return array


def _is_clear(shares: NDArray[np.float64]) -> bool:
    """Whether in every row one class is ahead of all others; NaN never is."""
    if shares.shape[1] == 2:
        return bool((np.abs(shares[:, 0] - shares[:, 1]) > _AS_GOOD_AS_EQUAL).all())
    first_two = np.partition(shares, -2, axis=1)[:, -2:]
    return bool((first_two[:, 1] - first_two[:, 0] > _AS_GOOD_AS_EQUAL).all())
