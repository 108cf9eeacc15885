"""Linear models: one matrix product, and what makes probabilities of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.compiled.matrix import Matrix, refuse_not_finite
from serving.compiled.refusals import AskNative, CannotCompile

LOGISTIC = ("LogisticRegression", "LogisticRegressionCV")
DECIDING = ("LinearSVC", "RidgeClassifier", "RidgeClassifierCV", "Perceptron", "SGDClassifier")
"""Classifiers without probabilities: their label is where their score is largest."""
REGRESSORS = (
    "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "SGDRegressor",
)  # fmt: skip
# Scores nearer to each other than this are scikit-learn's to decide: its sum may be rounded otherwise.
_AS_GOOD_AS_EQUAL = 1e-9


class Scores:
    """Rows times coefficients plus intercept."""

    def __init__(self, estimator: Any, width: int) -> None:
        """Raises CannotCompile."""
        coefficients = estimator.coef_
        if not isinstance(coefficients, np.ndarray) or coefficients.shape[-1] != width:
            raise CannotCompile(f"its coefficients are not those of {width} columns")
        self._coefficients = coefficients.T
        self._intercept = estimator.intercept_

    def __call__(self, matrix: Matrix) -> Matrix:
        """Rows by classes, rows by one, or one number a row. Raises AskNative for numbers that are not finite."""
        refuse_not_finite(matrix)
        scores: Matrix = matrix @ self._coefficients + self._intercept
        return scores


class LogisticRegression:
    """The index of the label, then the probabilities."""

    def __init__(self, estimator: Any, width: int) -> None:
        """Raises CannotCompile."""
        self._scores = Scores(estimator, width)
        self._classes = len(estimator.classes_)
        if estimator.coef_.shape[0] != (1 if self._classes == 2 else self._classes):
            raise CannotCompile("its coefficients are not those of its classes")

    def __call__(self, matrix: Matrix) -> NDArray[np.float64]:
        """Raises AskNative where two classes are as good as equal."""
        scores = self._scores(matrix)
        answer = np.empty((len(matrix), 1 + self._classes))
        answer[:, 0] = best_of(scores)
        answer[:, 1:] = two_shares(scores[:, 0]) if self._classes == 2 else softmax(scores)
        return answer


class Deciding:
    """The index of the label alone."""

    def __init__(self, estimator: Any, width: int) -> None:
        """Raises CannotCompile."""
        self._scores = Scores(estimator, width)

    def __call__(self, matrix: Matrix) -> NDArray[np.float64]:
        """Raises AskNative where two classes are as good as equal."""
        return best_of(self._scores(matrix)).astype(np.float64).reshape(-1, 1)


class Regression:
    """One number per row, or one for each output."""

    def __init__(self, estimator: Any, width: int) -> None:
        """Raises CannotCompile."""
        self._scores = Scores(estimator, width)

    def __call__(self, matrix: Matrix) -> NDArray[np.float64]:
        """Raises AskNative for numbers that are not finite."""
        return self._scores(matrix).astype(np.float64, copy=False).reshape(len(matrix), -1)


def two_shares(scores: Matrix) -> Matrix:
    """Probabilities of both classes from the score of the second."""
    from scipy.special import expit  # scikit-learn's own; only where there is such a model

    second = expit(scores)
    return np.column_stack([1 - second, second])


def softmax(scores: Matrix) -> Matrix:
    """Probabilities from a score per class."""
    raised: Matrix = np.exp(scores - scores.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return raised


def best_of(scores: Matrix) -> NDArray[np.intp]:
    """Index of the label by its score. Raises AskNative where two classes are as good as equal."""
    if scores.shape[-1] == 1 or scores.ndim == 1:
        scores = scores.reshape(-1)
        if (np.abs(scores) <= _AS_GOOD_AS_EQUAL).any():
            raise AskNative
        return (scores > 0).astype(np.intp)
    first_two = np.partition(scores, -2, axis=1)[:, -2:]
    if (first_two[:, 1] - first_two[:, 0] <= _AS_GOOD_AS_EQUAL).any():
        raise AskNative
    best: NDArray[np.intp] = scores.argmax(axis=1)
    return best
