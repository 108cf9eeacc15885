"""Flat columns of anything scalar, for a version that was logged without a signature of its inputs."""

import math
from collections.abc import Sequence
from typing import Any

import orjson

from serving.input_schema.careful import ROOT, check_lengths
from serving.input_schema.problems import Problems, invalid, kind_of, under

_SCALARS = frozenset({str, int, float, bool, type(None)})
_EXPECTED = "a scalar: a number, a string, a boolean or null"


class FreeInput:
    """Rows of whatever columns a request names, in its order. Their names travel in the variant."""

    def encode(self, given: Any, max_rows: int) -> tuple[int, bytes]:
        """How many rows, and their JSON: a list of cells for each.

        Raises:
            ValidationFailed: it is no object of scalars or of lists of scalars, of equal length.
        """
        if not isinstance(given, dict) or not given:
            raise invalid(ROOT, "empty" if given == {} else kind_of(given), "an object of columns")
        cells = list(given.values())
        if type(cells[0]) is list:
            size = _check_lists(given, max_rows)
            return size, _dump(list(zip(*cells, strict=True)))
        problems = Problems()
        for name, value in given.items():
            if not _is_scalar(value):
                problems.add(under(ROOT, str(name)), _described(value), _EXPECTED)
        problems.check()
        return 1, _dump([cells])


def _check_lists(given: dict[str, Any], max_rows: int) -> int:
    problems = Problems()
    for name, cells in given.items():
        if type(cells) is not list:
            expected = "a list, as the first column is one"
            problems.add(under(ROOT, str(name)), kind_of(cells), expected)
    problems.check()
    size = check_lengths(given, max_rows, problems)
    problems.check()
    for name, cells in given.items():
        if not set(map(type, cells)) <= _SCALARS or not all(map(_is_scalar, cells)):
            _note(name, cells, problems)
    problems.check()
    return size


def _note(name: str, cells: Sequence[Any], problems: Problems) -> None:
    for at, value in enumerate(cells):
        if not _is_scalar(value):
            problems.add(f"{under(ROOT, str(name))}[{at}]", _described(value), _EXPECTED)


def _is_scalar(value: Any) -> bool:
    return type(value) in _SCALARS and not (type(value) is float and not math.isfinite(value))


def _described(value: Any) -> str:
    return "not finite" if isinstance(value, float) else kind_of(value)


def _dump(rows: list[Any]) -> bytes:
    try:
        return orjson.dumps(rows)
    except TypeError:
        raise invalid(ROOT, "a value that cannot travel", "integers of 64 bits, and whole characters") from None
