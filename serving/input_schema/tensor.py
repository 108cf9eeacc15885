"""Nested lists against the single tensor of a signature."""

import math
import struct
from itertools import chain, product
from typing import Any

import orjson

from serving.contracts import Encoding
from serving.errors import SignatureNotSupported
from serving.input_schema.careful import ROOT
from serving.input_schema.cells import EXACT, CellType, WrongCell, cell_type, integers
from serving.input_schema.column import plain
from serving.input_schema.problems import Problems, invalid, kind_of, listed, under
from serving.input_schema.spec import TensorSpec, shape_text

UNNAMED = "inputs"
"""The key of `input_data` that holds the tensor; its own name is taken as well."""

_TYPES = {"float64": "double", "float32": "float", "bool": "boolean", "str": "string"}
_INTEGERS = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-EXACT, EXACT),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, EXACT),
}


class TensorInput:
    """Rows of a signature of one tensor: its numbers row after row, the last dimension fastest; of texts nested lists."""

    def __init__(self, spec: TensorSpec) -> None:
        """Raises SignatureNotSupported for a dtype that JSON cannot hold."""
        self.spec = spec
        self.encoding = Encoding.JSON if spec.dtype == "str" else Encoding.FLOATS
        self.type = _element_type(spec.dtype, self.encoding)
        # A tensor's signature cannot say whether numbers may be missing; models that bear NaN are common.
        self._required = spec.dtype not in ("float64", "float32")
        self._names = [each for each in (spec.name, UNNAMED) if each is not None]

    def encode(self, given: Any, max_rows: int) -> tuple[int, bytes]:
        """How many rows, and their bytes.

        Raises:
            ValidationFailed: another key, another shape, or elements of another type.
        """
        name, rows = self._chosen(given)
        path = under(ROOT, name)
        if not isinstance(rows, list):
            raise invalid(path, kind_of(rows), f"nested lists of shape {shape_text(self.spec.dims)}")
        if not 0 < len(rows) <= max_rows:
            raise invalid(path, f"{len(rows)} rows", f"1 to {max_rows} rows")
        flat = flatten(rows, self.spec.dims, path)
        if not plain(self.type, flat, required=self._required):
            flat = self._read(flat, path)
        if self.encoding is Encoding.JSON:
            return len(rows), orjson.dumps(nest(flat, self.spec.dims))
        return len(rows), struct.pack(f"<{len(flat)}d", *[math.nan if each is None else each for each in flat])

    def _chosen(self, given: Any) -> tuple[str, Any]:
        expected = f"an object with the one key {' or '.join(self._names)}"
        if not isinstance(given, dict):
            raise invalid(ROOT, kind_of(given), expected)
        problems = Problems()
        for name in given:
            if name not in self._names:
                problems.add(under(ROOT, str(name)), "unknown", expected)
        if len(given) != 1 and not problems.found:
            problems.add(ROOT, f"{len(given)} keys", expected)
        problems.check()
        return next(iter(given.items()))

    def _read(self, flat: list[Any], path: str) -> list[Any]:
        problems, read = Problems(), []
        places = product(*map(range, (len(flat) // self.spec.size, *self.spec.dims)))
        for value, place in zip(flat, places, strict=True):
            try:
                read.append(self._element(value))
            except WrongCell as wrong:
                problems.add(path + _index(place), wrong.problem, self.type.expected)
                if problems.full:
                    break
        problems.check()
        return read

    def _element(self, value: Any) -> Any:
        if value is None:
            if self._required:
                raise WrongCell("null")
            return math.nan
        result = self.type.read(value)
        if self._required and result != result:
            raise WrongCell("NaN")
        return result


def flatten(rows: list[Any], dims: tuple[int, ...], path: str) -> list[Any]:
    """The elements of nested lists, the last dimension fastest. Raises ValidationFailed where a list is not as long."""
    level = rows
    for depth, length in enumerate(dims):
        if not all(type(each) is list and len(each) == length for each in level):
            problems = Problems()
            _note_shapes(rows, dims, depth, path, problems)
            problems.check()
        level = list(chain.from_iterable(level))
    return level


def nest(flat: list[Any], dims: tuple[int, ...]) -> list[Any]:
    """The other way round: elements as nested lists of these dimensions, one for each row."""
    for length in reversed(dims):
        flat = [flat[at : at + length] for at in range(0, len(flat), length)]
    return flat


def _note_shapes(rows: list[Any], dims: tuple[int, ...], depth: int, path: str, problems: Problems) -> None:
    expected = f"a list of {dims[depth]}, the shape being {shape_text(dims)}"
    for place in product(*map(range, (len(rows), *dims[:depth]))):
        inner: Any = rows
        for at in place:
            inner = inner[at]
        if type(inner) is not list or len(inner) != dims[depth]:
            was = f"a list of {len(inner)}" if type(inner) is list else kind_of(inner)
            problems.add(path + _index(place), was, expected)
        if problems.full:
            return


def _index(place: tuple[int, ...]) -> str:
    return "".join(f"[{each}]" for each in place)


def _element_type(dtype: str, encoding: Encoding) -> CellType:
    if dtype in _INTEGERS:
        return integers(f"an integer ({dtype})", *_INTEGERS[dtype], dtype.upper())
    scalar = cell_type(_TYPES.get(dtype, ""), encoding)
    if scalar is None:
        raise SignatureNotSupported(
            f"the tensor of its signature is of dtype {dtype}; possible: {listed([*_TYPES, *_INTEGERS])}"
        )
    return scalar
