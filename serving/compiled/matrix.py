"""Steps from matrix to matrix: what scalers and imputers do to numbers, operation by operation as they do it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.compiled.refusals import AskNative, CannotCompile

Matrix = NDArray[Any]
"""Rows by features. Never changed in place by whoever is given it."""
Step = Callable[[Matrix], Matrix]

_KNOWN_PACKAGES = ("sklearn.", "lightgbm.")


def kind_of(part: Any) -> str:
    """The name of its class. Raises CannotCompile where that is neither scikit-learn's nor LightGBM's own."""
    name = type(part).__name__
    if not type(part).__module__.startswith(_KNOWN_PACKAGES):
        raise CannotCompile(f"{name} is not scikit-learn's own")
    return name


def chain_of(part: Any) -> list[Any]:
    """The steps of a pipeline, those of pipelines inside of it too, without those that do nothing. Raises CannotCompile."""
    if part is None or part == "passthrough":
        return []
    kind = kind_of(part)
    if kind == "Pipeline":
        return [each for _, step in part.steps for each in chain_of(step)]
    if kind == "FunctionTransformer" and part.func is None and not part.validate:
        return []
    return [part]


def read_steps(chain: Sequence[Any], width: int, dtype: np.dtype[Any]) -> list[Step]:
    """What these transformers do to a matrix of `width` columns and that dtype. Raises CannotCompile."""
    steps = []
    for part in chain:
        reader = _READERS.get(kind_of(part))
        if reader is None:
            raise CannotCompile(f"{kind_of(part)} is not compiled")
        if part.n_features_in_ != width:
            raise CannotCompile(f"its {kind_of(part)} knows {part.n_features_in_} columns and is given {width}")
        dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
        steps.append(reader(part, dtype))
    return steps


def apply_steps(steps: Sequence[Step], matrix: Matrix) -> Matrix:
    """All of them, one after the other."""
    for step in steps:
        matrix = step(matrix)
    return matrix


def refuse_infinite(matrix: Matrix) -> None:
    """Raises AskNative where there is an infinite number, as scikit-learn's checks do with ValueError."""
    if np.isinf(matrix).any():
        raise AskNative


def refuse_not_finite(matrix: Matrix) -> None:
    """Raises AskNative where there is NaN or an infinite number."""
    if not np.isfinite(matrix).all():
        raise AskNative


def imputed_values(imputer: Any) -> list[Any]:
    """What a SimpleImputer puts into each column's gaps. Raises CannotCompile where it does more than that."""
    gap = imputer.missing_values
    if not (isinstance(gap, float) and math.isnan(gap)):
        raise CannotCompile(f"its SimpleImputer looks for {gap!r}, not for gaps")
    if imputer.add_indicator or not isinstance(imputer.strategy, str):
        raise CannotCompile("its SimpleImputer adds columns or has a strategy of its own")
    values: list[Any] = np.asarray(imputer.statistics_).astype(imputer._fill_dtype).tolist()
    if any(each is None or each != each for each in values):
        raise CannotCompile("its SimpleImputer drops columns")
    return values


def _read_standard_scaler(scaler: Any, dtype: np.dtype[Any]) -> Step:
    mean = scaler.mean_.astype(dtype) if scaler.with_mean else None
    spread = scaler.scale_.astype(dtype) if scaler.with_std else None

    def scale(matrix: Matrix) -> Matrix:
        refuse_infinite(matrix)
        scaled = matrix.astype(dtype)
        if mean is not None:
            scaled -= mean
        if spread is not None:
            scaled /= spread
        return scaled

    return scale


def _read_min_max_scaler(scaler: Any, dtype: np.dtype[Any]) -> Step:
    def scale(matrix: Matrix) -> Matrix:
        refuse_infinite(matrix)
        scaled = matrix.astype(dtype)
        scaled *= scaler.scale_
        scaled += scaler.min_
        if scaler.clip:
            low, high = (dtype.type(each) for each in scaler.feature_range)
            np.clip(scaled, low, high, out=scaled)
        return scaled

    return scale


def _read_imputer(imputer: Any, dtype: np.dtype[Any]) -> Step:
    values = np.array(imputed_values(imputer), dtype)

    def impute(matrix: Matrix) -> Matrix:
        refuse_infinite(matrix)
        return np.where(np.isnan(matrix), values, matrix)

    return impute


_READERS: dict[str, Callable[[Any, np.dtype[Any]], Step]] = {
    "StandardScaler": _read_standard_scaler,
    "MinMaxScaler": _read_min_max_scaler,
    "SimpleImputer": _read_imputer,
}
