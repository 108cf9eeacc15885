"""The rows of requests as a model takes them: what its signature says, with the dtypes that MLflow would have given them."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pandas as pd
from numpy.typing import NDArray

from serving.contracts import Encoding
from serving.errors import ModelNotLoadable

Raw = NDArray[np.float64] | list[Any]
"""Rows as they travelled: one array of numbers, or a list with one element per row. Slices of it are rows again."""

_NUMBERS: dict[str, Any] = {
    "double": np.float64,
    "float": np.float32,
    "long": np.int64,
    "integer": np.int32,
    "boolean": np.bool_,
}
# What pandas itself makes of a list of texts: another dtype since version 3, and it decides what a gap becomes.
_TEXT = pd.Series(["a"]).dtype


@dataclass(frozen=True)
class Column:
    """One column of a signature."""

    name: Any  # a text; a number where the signature names no columns
    type: str  # of MLflow's: double, float, long, integer, boolean, string, datetime, binary, array, object, map, any
    required: bool


@dataclass(frozen=True)
class Tensor:
    """One tensor of a signature. The first dimension of its shape counts rows."""

    name: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class ModelInput:
    """Turns rows into what the model's `predict` is given."""

    def __init__(self, columns: Sequence[Column] = (), tensor: Tensor | None = None) -> None:
        """Neither columns nor a tensor: a model without signature, whose requests say their columns."""
        self.columns = list(columns)
        self.tensor = tensor
        self.names = [each.name for each in columns]
        self.numeric = bool(columns) and all(each.type in _NUMBERS for each in columns)
        """Whether there are columns, and all of them are numbers."""
        self._changing = [place for place, each in enumerate(columns) if _changes_with_gaps(each)]
        self.has_one_dtype = tensor is not None or (bool(columns) and not self._changing)
        """Whether what is in the rows never decides the dtypes of their table."""
        self._plain = self.numeric and all(each.type == "double" for each in columns)
        self._common = _common_dtype(columns) if self.numeric else np.dtype(np.float64)

    @classmethod
    def of_signature(cls, signature: dict[str, Any] | None) -> "ModelInput":
        """From the `signature` of a file MLmodel. Raises ModelNotLoadable when it cannot be read."""
        try:
            inputs = json.loads((signature or {}).get("inputs") or "[]")
            if any("tensor-spec" in each for each in inputs):
                (only,) = inputs
                return cls(tensor=_tensor(only))
            return cls([_column(each, place) for place, each in enumerate(inputs)])
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise ModelNotLoadable(f"its signature cannot be read ({type(problem).__name__}: {problem})") from problem

    def read(self, encoding: Encoding, bodies: Sequence[bytes], sizes: Sequence[int]) -> Raw:
        """The rows of all requests, in order. Raises ValueError when a body does not hold as many as it says."""
        if encoding is Encoding.FLOATS:
            return _read_floats(bodies, sizes)
        rows: list[Any] = []
        for body, size in zip(bodies, sizes, strict=True):
            some = orjson.loads(body)
            if len(some) != size:
                raise ValueError(f"{len(some)} rows came where {size} were announced")
            rows += some
        return rows

    def dtypes_of(self, raw: Raw) -> Any:
        """What of these rows decides the dtypes of the whole DataFrame. Rows that differ in it must not share one.

        Else the answer to one client would depend on what another one sent at the same moment.
        """
        if not self.columns:
            rows = [] if isinstance(raw, np.ndarray) else raw
            return tuple(tuple(sorted({type(each).__name__ for each in column})) for column in zip(*rows, strict=False))
        if isinstance(raw, np.ndarray):
            return tuple(bool(np.isnan(raw[:, place]).any()) for place in self._changing)
        return tuple(any(row[place] is None for row in raw) for place in self._changing)

    def to_array(self, raw: Raw) -> NDArray[Any]:
        """Rows of numbers as one array, of the dtype that a DataFrame of them would have as a whole."""
        return np.array(raw, np.float64).astype(self._common, copy=False)

    def to_frame(self, raw: Raw, columns: Sequence[str] | None) -> Any:
        """A DataFrame with the signature's columns and dtypes; an array, or one by name, where it is of a tensor.

        Args:
            raw: rows; each has the columns in the signature's order, or in that of `columns`.
            columns: what the request called them. Counts only where the model has no signature.
        """
        if self.tensor is not None:
            array = _shaped(self.tensor, raw)
            return array if self.tensor.name is None else {self.tensor.name: array}
        if not self.columns:
            table: Any = {"data": raw, "columns": columns}
            return pd.DataFrame(**table) if columns else np.asarray(raw)
        if isinstance(raw, np.ndarray):
            if self._plain:
                return pd.DataFrame(raw.copy(), columns=self.names)
            values: Any = raw.T
        else:
            values = list(zip(*raw, strict=True))
        return pd.DataFrame(
            {each.name: _series(each, some) for each, some in zip(self.columns, values, strict=True)}, copy=False
        )


def _column(listed: dict[str, Any], place: int) -> Column:
    kind = listed["type"]
    return Column(
        listed.get("name", place), kind if isinstance(kind, str) else "any", bool(listed.get("required", True))
    )


def _tensor(listed: dict[str, Any]) -> Tensor:
    spec = listed["tensor-spec"]
    return Tensor(listed.get("name"), np.dtype(spec["dtype"]), tuple(spec["shape"]))


def _common_dtype(columns: Sequence[Column]) -> np.dtype[Any]:
    # A column of truth values makes numbers of the whole for scikit-learn, which goes by way of objects there; and a gap
    # in one of whole numbers has room among floating ones only.
    if any(each.type == "boolean" or _changes_with_gaps(each) for each in columns):
        return np.dtype(np.float64)
    return np.result_type(*(_NUMBERS[each.type] for each in columns))


def _changes_with_gaps(column: Column) -> bool:
    """Whether the dtype of a column is another one where a value is missing."""
    return column.type in ("long", "integer", "boolean") and not column.required


def _read_floats(bodies: Sequence[bytes], sizes: Sequence[int]) -> NDArray[np.float64]:
    # By way of a bytearray, since an array on top of bytes is read-only, which some models do not bear.
    numbers = np.frombuffer(bytearray().join(bodies), "<f8")
    rows = sum(sizes)
    width = len(numbers) // rows if rows else 0
    if any(len(body) != size * width * 8 for body, size in zip(bodies, sizes, strict=True)):
        raise ValueError("a body does not hold as many rows as it says")
    return numbers.reshape(rows, width)


def _series(column: Column, values: Any) -> Any:
    if column.type in _NUMBERS:
        return _numbers(column.type, values)
    if column.type == "string":
        return pd.Series(values, dtype=_TEXT)
    if column.type == "datetime":
        moments = pd.to_datetime(pd.Series(values, dtype=object), utc=True, format="ISO8601")
        return moments.dt.tz_localize(None).astype("datetime64[ns]")
    if column.type == "binary":
        values = [None if each is None else base64.b64decode(each) for each in values]
    return pd.Series(list(values), dtype=object)


def _numbers(type_: str, values: Any) -> Any:
    """Of the signature's dtype; with gaps of the nearest that has room for them, as pandas does it."""
    dtype = _NUMBERS[type_]
    if type_ in ("double", "float"):
        return np.array(values, dtype)
    gaps = np.isnan(values) if isinstance(values, np.ndarray) else np.array([each is None for each in values])
    if not gaps.any():
        return np.array(values, dtype)
    if type_ == "boolean":
        truths = [None if gap else bool(each) for gap, each in zip(gaps, values, strict=True)]
        return pd.Series(truths, dtype=object)
    return np.array(values, np.float64)


def _shaped(tensor: Tensor, raw: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.array(raw, dtype=tensor.dtype)
    return array.reshape(len(array), *tensor.shape[1:])
