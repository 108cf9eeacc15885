"""The scalar types of a signature: which JSON values each takes, one at a time and many at once."""

import binascii
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serving.contracts import Encoding
from serving.input_schema.problems import kind_of

EXACT = 2**53
"""Beyond it float64 skips integers, so that one would silently become its neighbour."""

LONG = 2**63 - 1
INTEGER = 2**31 - 1
_DOUBLE = 1.7976931348623157e308
_FLOAT = 3.4028234663852886e38  # the largest of 32 bits
# What datetime64[ns], in which MLflow and pandas keep times, can hold.
_EARLIEST = datetime(1677, 9, 22, tzinfo=UTC)
_LATEST = datetime(2262, 4, 11, tzinfo=UTC)
# Numbers that JSON has no literal for, spelled as in the JSON form of Protocol Buffers.
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Read = Callable[[Any], Any]
"""One value as it travels, which may differ from how it was given. Raises WrongCell."""


class WrongCell(Exception):
    """One value is not of its type."""

    def __init__(self, problem: str, expected: str = "", below: str = "") -> None:
        self.problem = problem
        self.expected = expected  # where it is not what is expected of the whole cell
        self.below = below  # path inside the cell, as [2] or .key
        super().__init__(problem)


@dataclass(frozen=True)
class CellType:
    """How values of one type are checked."""

    expected: str  # in words
    read: Read
    plain: frozenset[type]  # of values that travel as they are, once `in_range`; empty: each must be read
    in_range: Callable[[Sequence[Any]], bool]  # False sends the request to `read`, it need not be wrong
    datatype: str  # of the Open Inference Protocol


def cell_type(name: str, encoding: Encoding) -> CellType | None:
    """The scalar type of this name in MLflow; None where there is none."""
    make = _MAKERS.get(name)
    return make(encoding) if make else None


_NUMBERS = frozenset({float, int})


def anything(_: Sequence[Any]) -> bool:
    """For types whose plain values are all in range."""
    return True


def _all_finite(values: Sequence[Any]) -> bool:
    # The sum is NaN or infinite as soon as one of them is. One of huge finite numbers may be too: harmless.
    try:
        return math.isfinite(sum(values))
    except OverflowError:  # an integer beyond any float
        return False


def _within_float(values: Sequence[Any]) -> bool:
    return _all_finite(values) and bool(min(values) >= -_FLOAT and max(values) <= _FLOAT)


def _number(limit: float, encoding: Encoding) -> Read:
    def read(value: Any) -> Any:
        if isinstance(value, str):
            return _spelled(value, encoding)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongCell(kind_of(value))
        if limit < abs(value) < math.inf:
            raise WrongCell("too large")
        # JSON has no infinity, so its text travels on.
        return _text_of(value) if encoding is Encoding.JSON and math.isinf(value) else value

    return read


def read_finite(value: Any) -> float:
    """A number that is neither NaN nor infinite, as 64-bit float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongCell(kind_of(value))
    if not -_DOUBLE <= value <= _DOUBLE:
        raise WrongCell("not finite, or too large")
    return float(value)


def _spelled(value: str, encoding: Encoding) -> Any:
    number = _SPELLED.get(value)
    if number is None:
        raise WrongCell("a string")
    return value if encoding is Encoding.JSON and math.isinf(number) else number


def _text_of(infinite: float) -> str:
    return "Infinity" if infinite > 0 else "-Infinity"


def integers(expected: str, least: int, most: int, datatype: str) -> CellType:
    """A type of integers from `least` to `most`."""

    def in_range(values: Sequence[Any]) -> bool:
        return bool(min(values) >= least and max(values) <= most)

    def read(value: Any) -> Any:
        return read_integer(value, least, most)

    return CellType(expected, read, frozenset({int}), in_range, datatype)


def read_integer(value: Any, least: int = -LONG - 1, most: int = LONG) -> Any:
    """An integer in these bounds, also from a float without fraction: JSON cannot tell 1 from 1.0. NaN stays it."""
    if isinstance(value, float) and math.isnan(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongCell(kind_of(value))
    if not least <= value <= most:
        raise WrongCell("beyond 2**53, where digits would be lost" if most == EXACT else "out of range")
    if value != int(value):
        raise WrongCell("a number with a fraction")
    return int(value)


def read_boolean(value: Any) -> bool:
    """True or false, nothing that is merely equal to them."""
    if not isinstance(value, bool):
        raise WrongCell(kind_of(value))
    return value


def read_string(value: Any) -> str:
    """A text that can travel."""
    if not isinstance(value, str):
        raise WrongCell(kind_of(value))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise WrongCell("a string with half a surrogate pair") from None
    return value


def read_datetime(value: Any) -> str:
    """A time in ISO 8601 as UTC without a zone, which is how MLflow wants it."""
    if not isinstance(value, str):
        raise WrongCell(kind_of(value))
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise WrongCell("a string that is no time") from None
    if not _EARLIEST <= moment <= _LATEST:
        raise WrongCell("a time before 1677-09-22 or after 2262-04-11")
    return moment.replace(tzinfo=None).isoformat()


def _read_binary(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongCell(kind_of(value))
    try:
        binascii.a2b_base64(value, strict_mode=True)
    except ValueError:  # binascii.Error, or characters beyond ASCII
        raise WrongCell("a string that is not base64") from None
    return value


def _double(encoding: Encoding) -> CellType:
    return CellType("a number (double)", _number(_DOUBLE, encoding), _NUMBERS, _all_finite, "FP64")


def _float(encoding: Encoding) -> CellType:
    return CellType("a number (float, 32 bit)", _number(_FLOAT, encoding), _NUMBERS, _within_float, "FP32")


def _long(encoding: Encoding) -> CellType:
    least, most = (-EXACT, EXACT) if encoding is Encoding.FLOATS else (-LONG - 1, LONG)
    return integers("an integer (long)", least, most, "INT64")


def _integer(_: Encoding) -> CellType:
    return integers("an integer (32 bit)", -INTEGER - 1, INTEGER, "INT32")


def _boolean(_: Encoding) -> CellType:
    return CellType("true or false", read_boolean, frozenset({bool}), anything, "BOOL")


def _string(_: Encoding) -> CellType:
    return CellType("a string", read_string, frozenset({str}), anything, "BYTES")


def _datetime(_: Encoding) -> CellType:
    return CellType("a time in ISO 8601", read_datetime, frozenset(), anything, "BYTES")


def _binary(_: Encoding) -> CellType:
    return CellType("bytes as base64 text", _read_binary, frozenset(), anything, "BYTES")


_MAKERS: dict[str, Callable[[Encoding], CellType]] = {
    "double": _double,
    "float": _float,
    "long": _long,
    "integer": _integer,
    "boolean": _boolean,
    "string": _string,
    "datetime": _datetime,
    "binary": _binary,
}
