"""The row encoder: rows as they travelled to the matrix that a fitted ColumnTransformer makes of their DataFrame."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.compiled.categories import ENCODERS, Codes, read_one_hot, read_ordinal
from serving.compiled.matrix import Matrix, Step, apply_steps, chain_of, kind_of, read_steps
from serving.compiled.refusals import AskNative, CannotCompile
from serving.model_input import Column, ModelInput, Raw

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# Whole numbers beyond are another number as a float; the second is what a column of MLflow's type may hold.
_LARGEST = {"long": 2**53, "integer": 2**31 - 1, "boolean": 1}
_NUMBERS = ("double", "float", "long", "integer", "boolean")


@dataclass(frozen=True)
class _Numbers:
    """Columns of numbers that stay numbers."""

    places: list[int]  # in a row
    steps: list[Step]
    out: slice  # in the matrix
    dtype: np.dtype[Any]  # that scikit-learn computes in


@dataclass(frozen=True)
class _Ordinals:
    """Columns of categories that become one number each."""

    places: list[int]
    codes: list[Codes]
    steps: list[Step]
    out: slice


@dataclass(frozen=True)
class _Parts:
    numbers: list[_Numbers] = field(default_factory=list)
    ordinals: list[_Ordinals] = field(default_factory=list)
    hot: list[tuple[int, Codes]] = field(default_factory=list)  # place in a row, and places in the matrix


class RowEncoder:
    """Rows to a matrix of float64. Raises AskNative for rows that scikit-learn refuses or takes in another way."""

    def __init__(self, transformer: Any, model_input: ModelInput) -> None:
        """Raises CannotCompile, or whatever a transformer without the attributes of a fitted one raises."""
        self._columns = model_input.columns
        self._names = _names_of(transformer, model_input)
        if odd := [each.type for each in self._columns if each.type not in (*_NUMBERS, "string")]:
            raise CannotCompile(f"columns of type {odd[0]} are not compiled")
        if transformer.transformer_weights:
            raise CannotCompile("its ColumnTransformer weighs its parts")
        self.width = max((each.stop for each in transformer.output_indices_.values()), default=0)
        self.is_sparse = bool(transformer.sparse_output_)
        self._parts = _Parts()
        for name, part, _ in transformer.transformers_:
            if part != "drop":
                places = self._places(transformer._transformer_to_input_indices[name])
                self._add(chain_of(part), places, transformer.output_indices_[name])
        self._taken = [place for each in self._parts.numbers for place in each.places]
        self._checked = self._of_type(*_LARGEST)
        self._limits = np.array([_LARGEST[self._columns[self._taken[each]].type] for each in self._checked])
        self._booleans = self._of_type("boolean")
        self._singles = self._of_type("float")

    def __call__(self, raw: Raw) -> Matrix:
        """One row of the matrix for each of the rows."""
        rows = len(raw)
        table: Any = raw.T if isinstance(raw, np.ndarray) else list(zip(*raw, strict=True))
        # One column more, for what a one-hot encoder does not know: so there is nothing to decide for each cell.
        matrix = np.zeros((rows, self.width + 1))
        if self._parts.numbers:
            self._put_numbers(matrix, np.array([table[place] for place in self._taken], _DOUBLE).T)
        for part in self._parts.ordinals:
            numbers = [_looked_up(table[place], codes) for place, codes in zip(part.places, part.codes, strict=True)]
            matrix[:, part.out] = apply_steps(part.steps, np.array(numbers, _DOUBLE).T)
        if self._parts.hot:
            hot = np.array([_looked_up(table[place], codes) for place, codes in self._parts.hot], np.intp)
            hot += np.arange(rows) * (self.width + 1)
            matrix.reshape(-1)[hot] = 1.0
        return matrix[:, : self.width]

    def categories(self) -> dict[int, list[Any]]:
        """place in a row -> some categories that its encoder knows."""
        known = {place: list(codes) for place, codes in self._parts.hot}
        for part in self._parts.ordinals:
            known |= {place: list(codes) for place, codes in zip(part.places, part.codes, strict=True)}
        return known

    def _put_numbers(self, matrix: Matrix, numbers: Matrix) -> None:
        if self._checked:
            self._check_whole(numbers)
        if self._singles:
            with np.errstate(over="ignore"):
                numbers[:, self._singles] = single = numbers[:, self._singles].astype(_SINGLE)
            if np.isinf(single).any():
                raise AskNative
        start = 0
        for part in self._parts.numbers:
            block = numbers[:, start : start + len(part.places)]
            start += len(part.places)
            matrix[:, part.out] = apply_steps(part.steps, block.astype(part.dtype, copy=False)) if part.steps else block

    def _check_whole(self, numbers: Matrix) -> None:
        """Raises AskNative where a cell is not what its column's type is, which DataFrames cut or refuse."""
        whole = numbers[:, self._checked]
        odd = (whole != np.rint(whole)) | (np.abs(whole) > self._limits)
        if odd.any() and not np.isnan(whole[odd]).all():
            raise AskNative
        if self._booleans and np.isnan(numbers[:, self._booleans]).any():
            raise AskNative

    def _of_type(self, *types: str) -> list[int]:
        return [index for index, place in enumerate(self._taken) if self._columns[place].type in types]

    def _places(self, indices: Sequence[int]) -> list[int]:
        try:
            return [self._names.index(index) for index in indices]
        except ValueError as problem:
            raise CannotCompile("its ColumnTransformer takes columns that the signature does not have") from problem

    def _add(self, chain: list[Any], places: list[int], out: slice) -> None:
        found = [place for place, each in enumerate(chain) if kind_of(each) in ENCODERS]
        columns = [self._columns[place] for place in places]
        if not found:
            dtype = _dtype_of(columns, chain)
            self._parts.numbers.append(_Numbers(places, read_steps(chain, len(places), dtype), out, dtype))
            return
        before, encoder, after = chain[: found[0]], chain[found[0]], chain[found[0] + 1 :]
        if len(before) > 1:
            raise CannotCompile("there is more than an imputer in front of its encoder")
        imputer = before[0] if before else None
        texts = [each.type == "string" for each in columns]
        if imputer is not None and len(set(texts)) > 1:
            raise CannotCompile("its imputer takes texts and numbers together")
        if any(each.type == "boolean" and not each.required for each in columns):
            raise CannotCompile("an encoder takes truth values that may be missing")
        if kind_of(encoder) == "OrdinalEncoder":
            steps = read_steps(after, len(places), _DOUBLE)
            self._parts.ordinals.append(_Ordinals(places, read_ordinal(encoder, texts, imputer), steps, out))
        elif after:
            raise CannotCompile(f"{kind_of(after[0])} after a OneHotEncoder is not compiled")
        else:
            codes = read_one_hot(encoder, texts, imputer, out.start, self.width)
            self._parts.hot.extend(zip(places, codes, strict=True))


def _names_of(transformer: Any, model_input: ModelInput) -> list[int]:
    """Of each column of a row: its place among those that the transformer was fitted with; -1 where it is none."""
    fitted = getattr(transformer, "feature_names_in_", None)
    if fitted is None:
        raise CannotCompile("its ColumnTransformer was fitted without names")
    by_name = {name: place for place, name in enumerate(fitted.tolist())}
    return [by_name.get(name, -1) for name in model_input.names]


def _looked_up(cells: Any, codes: Codes) -> list[Any]:
    return list(map(codes.__getitem__, cells.tolist() if isinstance(cells, np.ndarray) else cells))


def _dtype_of(columns: Sequence[Column], chain: Sequence[Any]) -> np.dtype[Any]:
    """What scikit-learn computes in, given a DataFrame of these columns."""
    if any(each.type == "string" for each in columns):
        raise CannotCompile("texts reach it without an encoder")
    if chain and any(each.type == "boolean" for each in columns):
        raise CannotCompile(f"{kind_of(chain[0])} of truth values is not compiled")
    return _SINGLE if columns and all(each.type == "float" for each in columns) else _DOUBLE
