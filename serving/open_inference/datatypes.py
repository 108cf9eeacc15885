"""The datatypes of the protocol: which JSON values each has, and which of them a column takes."""

from collections.abc import Sequence
from typing import Any

FLOATS = frozenset({"FP16", "FP32", "FP64"})
INTEGERS = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
NUMBERS = FLOATS | INTEGERS
DATATYPES = NUMBERS | {"BOOL", "BYTES"}

_SPELLED = ("NaN", "Infinity", "-Infinity")
_NULL = type(None)
# Of most tensors; any other value is looked at alone.
_PLAIN: dict[str, frozenset[type]] = {
    **dict.fromkeys(FLOATS, frozenset({float, int, _NULL})),
    **dict.fromkeys(INTEGERS, frozenset({int, _NULL})),
    "BOOL": frozenset({bool, _NULL}),
    "BYTES": frozenset({str, _NULL}),
}


def accepted_for(datatype: str) -> frozenset[str]:
    """The datatypes that an input described as `datatype` is taken in. Ranges are left to the signature."""
    if datatype in FLOATS:
        return NUMBERS
    return INTEGERS if datatype in INTEGERS else frozenset({datatype})


def first_misfit(datatype: str, elements: Sequence[Any]) -> int | None:
    """Index of the first element that is none of this datatype, nor null; None where all are."""
    if set(map(type, elements)) <= _PLAIN[datatype] and not datatype.startswith("U"):
        return None
    return next((at for at, each in enumerate(elements) if not _fits(datatype, each)), None)


def _fits(datatype: str, value: Any) -> bool:
    if type(value) is float and datatype in INTEGERS:  # JSON cannot tell 1 from 1.0
        return value.is_integer() and (value >= 0 or not datatype.startswith("U"))
    if type(value) is int and datatype.startswith("U"):
        return value >= 0
    return type(value) in _PLAIN[datatype] or (datatype in FLOATS and value in _SPELLED)


def datatype_of(values: Sequence[Any]) -> str:
    """The datatype that holds all of these JSON scalars, null aside. BYTES, as JSON text, where no other does."""
    types = set(map(type, values)) - {_NULL}
    if types == {bool}:
        return "BOOL"
    if types == {int} and all(each is None or -(2**63) <= each < 2**63 for each in values):
        return "INT64"
    return "FP64" if types and types <= {int, float} else "BYTES"
