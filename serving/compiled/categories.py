"""Categories to numbers, one column at a time: what OneHotEncoder and OrdinalEncoder have learnt, as dictionaries."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.compiled.matrix import imputed_values, kind_of
from serving.compiled.refusals import AskNative, CannotCompile

ENCODERS = ("OneHotEncoder", "OrdinalEncoder")
_EXACT = 2**53


class Codes(dict[Any, Any]):
    """category -> code. Looking up what the encoder refuses raises AskNative."""

    def __init__(self, known: dict[Any, Any], *, unknown: Any, gap: Any, cells: tuple[type, ...]) -> None:
        """`unknown`, `gap`: codes of a category never seen, and of none; None where the encoder refuses it.

        cells: types that a category of this column may have. Another one may be anything to scikit-learn.
        """
        super().__init__(known)
        self._unknown = unknown
        self._gap = gap
        self._cells = cells

    def __missing__(self, cell: Any) -> Any:
        if cell is None or cell != cell:
            code = self._gap
        else:
            code = self._unknown if isinstance(cell, self._cells) and cell not in (np.inf, -np.inf) else None
        if code is None:
            raise AskNative
        return code


def read_one_hot(encoder: Any, texts: Sequence[bool], imputer: Any, start: int, nowhere: int) -> list[Codes]:
    """Of each column: the place of each category in the matrix; `nowhere` for what is unknown.

    Args:
        encoder: a fitted OneHotEncoder.
        texts: of each column, whether it holds texts; else numbers.
        imputer: a SimpleImputer in front of it, or None.
        start: first column of the matrix that is the encoder's.
        nowhere: a column that nobody reads.

    Raises:
        CannotCompile: it merges or drops categories, or has some that are neither texts nor numbers.
    """
    if encoder.drop is not None or _merges(encoder) or encoder.handle_unknown not in ("error", "ignore"):
        raise CannotCompile("its OneHotEncoder drops or merges categories")
    unknown = None if encoder.handle_unknown == "error" else nowhere
    codes = []
    for column, categories in enumerate(encoder.categories_):
        places = {category: start + place for place, category in enumerate(categories.tolist())}
        start += len(places)
        codes.append(_codes(places, unknown, _cells(is_text=texts[column]), _fill(imputer, column)))
    return codes


def read_ordinal(encoder: Any, texts: Sequence[bool], imputer: Any) -> list[Codes]:
    """Of each column: the number of each category. See `read_one_hot`."""
    if _merges(encoder):
        raise CannotCompile("its OrdinalEncoder merges categories")
    kind = np.dtype(encoder.dtype).type
    unknown = None if encoder.handle_unknown == "error" else float(kind(encoder.unknown_value))
    codes = []
    for column, categories in enumerate(encoder.categories_):
        numbers = [float(kind(place)) for place in range(len(categories))]
        if column in encoder._missing_indices:
            numbers[encoder._missing_indices[column]] = float(kind(encoder.encoded_missing_value))
        known = dict(zip(categories.tolist(), numbers, strict=True))
        codes.append(_codes(known, unknown, _cells(is_text=texts[column]), _fill(imputer, column)))
    return codes


def _merges(encoder: Any) -> bool:
    return bool(getattr(encoder, "_infrequent_enabled", False))


def _fill(imputer: Any, column: int) -> Any:
    """What the imputer in front puts into this column's gaps; None where there is no imputer."""
    if imputer is None:
        return None
    if kind_of(imputer) != "SimpleImputer":
        raise CannotCompile(f"{kind_of(imputer)} in front of an encoder is not compiled")
    return imputed_values(imputer)[column]


def _cells(*, is_text: bool) -> tuple[type, ...]:
    return (str,) if is_text else (int, float)


def _codes(known: dict[Any, Any], unknown: Any, cells: tuple[type, ...], fill: Any) -> Codes:
    gap = unknown
    for category in list(known):
        if isinstance(category, float) and category != category:
            gap = known.pop(category)
        elif not isinstance(category, cells) or not _is_exact(category):
            raise CannotCompile(f"a category is a {type(category).__name__} in a column of another kind")
    if fill is not None:
        gap = known.get(fill, unknown)
    return Codes(known, unknown=unknown, gap=gap, cells=cells)


def _is_exact(category: Any) -> bool:
    """Whether it is no whole number that floats do not hold."""
    return isinstance(category, str) or abs(category) < _EXACT
