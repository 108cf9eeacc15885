"""Linear models: one matrix product, and what makes probabilities of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

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
        return by_logit(best_of(scores), scores) if self._classes == 2 else by_softmax(best_of(scores), scores)


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


def by_logit(labels: NDArray[Any], scores: Matrix) -> NDArray[np.float64]:
    """Answers of two classes: their index, and both probabilities, from the score of the second (rows by one)."""
    answer = np.empty((len(scores), 3))
    answer[:, 0] = labels
    answer[:, 2] = expit(scores[:, 0])
    np.subtract(1.0, answer[:, 2], out=answer[:, 1])
    return answer


def by_softmax(labels: NDArray[Any], scores: Matrix) -> NDArray[np.float64]:
    """Answers of several classes, from a score for each."""
    raised: Matrix = np.exp(scores - scores.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return labelled(labels, raised)


def labelled(labels: NDArray[Any], shares: Matrix) -> NDArray[np.float64]:
    """Answers as an engine gives them: the index of the label, then the probabilities."""
    answer = np.empty((len(shares), 1 + shares.shape[1]))
    answer[:, 0] = labels
    answer[:, 1:] = shares
    return answer


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
