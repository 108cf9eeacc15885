"""From matrix to answers: the last step of a pipeline, computed directly where that is known, else called as it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.compiled import linear, trees
from serving.compiled.matrix import Matrix, kind_of
from serving.compiled.refusals import CannotCompile
from serving.engines import ClassifierEngine, Engine, RegressorEngine

Answering = Callable[[Matrix], NDArray[np.float64]]


@dataclass(frozen=True)
class Finish:
    """The last step.

    Attributes:
        answer: rows of the matrix to answers as the engine gives them. Raises AskNative.
        engine: the same step as scikit-learn does it, on a matrix.
        is_direct: whether `answer` is more than a call of that.
        thresholds: where its trees decide; None where it has none.
    """

    answer: Answering
    engine: Engine
    is_direct: bool
    thresholds: trees.Thresholds | None = None


def read_estimator(estimator: Any, engine: Engine, width: int, *, is_sparse: bool) -> Finish:
    """How the last step of this engine's pipeline answers a matrix of `width` columns.

    is_sparse: whether scikit-learn gives it a sparse matrix.

    Raises:
        CannotCompile: it can be answered in no way but its own.
    """
    kind = kind_of(estimator)
    own = _own_engine(estimator, engine)
    if kind in linear.LOGISTIC:
        return Finish(linear.LogisticRegression(estimator, width), own, is_direct=True)
    if kind in linear.DECIDING and not engine.probabilities:
        return Finish(linear.Deciding(estimator, width), own, is_direct=True)
    if kind in linear.REGRESSORS:
        return Finish(linear.Regression(estimator, width), own, is_direct=True)
    if kind in trees.FORESTS:
        forest = trees.Forest(estimator, width, is_sparse=is_sparse)
        return Finish(forest, own, is_direct=True, thresholds=forest.thresholds)
    if kind in trees.BOOSTED and estimator._preprocessor is None:
        boosted = trees.Boosted(estimator, width)
        return Finish(boosted, own, is_direct=True, thresholds=boosted.thresholds)
    if kind in ("LGBMClassifier", "LGBMRegressor"):
        return Finish(_of_lightgbm(estimator), own, is_direct=True)
    if is_sparse:
        raise CannotCompile(f"{kind} is given a sparse matrix")
    return Finish(lambda matrix: _numbers(own.predict(np.ascontiguousarray(matrix), None)), own, is_direct=False)


def _own_engine(estimator: Any, engine: Engine) -> Engine:
    """The engine of the last step alone."""
    if isinstance(engine, ClassifierEngine):
        own = ClassifierEngine(estimator, engine.name)
        own.label_by_argmax = engine.label_by_argmax
        return own
    return RegressorEngine(estimator, engine.name)


def _of_lightgbm(estimator: Any) -> Answering:
    """Its booster, without what scikit-learn's interface checks and converts around it."""
    if callable(estimator._objective):
        raise CannotCompile("its objective is a function of its own")
    booster, classes = estimator.booster_, getattr(estimator, "classes_", None)
    options = {name: value for name, value in estimator._other_params.items() if name.startswith("pred")}

    def answer(matrix: Matrix) -> NDArray[np.float64]:
        found = booster.predict(np.ascontiguousarray(matrix, np.float64), num_threads=1, **options)
        if classes is None:
            return np.asarray(found, np.float64).reshape(len(matrix), -1)
        shares = np.column_stack([1.0 - found, found]) if found.ndim == 1 else found
        return linear.labelled(shares.argmax(axis=1), shares)

    return answer


def _numbers(answers: Any) -> NDArray[np.float64]:
    if not isinstance(answers, np.ndarray):
        raise TypeError(f"an engine answered with a {type(answers).__name__}")
    return answers
