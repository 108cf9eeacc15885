"""What a signature says, in our own words: columns, a tensor, or nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import orjson

from serving.errors import SignatureNotSupported


@dataclass(frozen=True)
class ColumnSpec:
    """One column of a signature."""

    name: str
    type: str  # MLflow's: boolean, integer, long, float, double, string, binary, datetime, array, object, map, any
    required: bool  # else a cell may be null, and the column may be left out


@dataclass(frozen=True)
class TensorSpec:
    """The tensor of a signature."""

    name: str | None
    dtype: str  # NumPy's name of it
    dims: tuple[int, ...]  # of one row; () where a row is a single number

    @property
    def size(self) -> int:
        """Numbers in one row."""
        return prod(self.dims)


@dataclass(frozen=True)
class FieldDescription:
    """One input as others see it."""

    name: str
    datatype: str  # of the Open Inference Protocol: FP64, INT64, BOOL, BYTES, ...
    shape: list[int]  # -1: as many as there are rows
    required: bool


def shape_text(dims: tuple[int, ...]) -> str:
    """A tensor's shape as people write it, n being the rows."""
    return f"[{', '.join(['n', *map(str, dims)])}]"


def signature_part(signature: Mapping[str, Any] | None, part: str) -> list[dict[str, Any]] | None:
    """`inputs` or `params` of a signature, from lists or from the JSON texts that MLflow's `to_dict` makes of them.

    Raises:
        SignatureNotSupported: it is neither.
    """
    value = signature.get(part) if signature else None
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise SignatureNotSupported(f"the {part} of its signature are not JSON ({error})") from None
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise SignatureNotSupported(f"the {part} of its signature are no list of objects")
    return value


def is_required(spec: Mapping[str, Any]) -> bool:
    """Whether a column or property must have a value. Old versions of MLflow wrote `optional` instead."""
    return bool(spec.get("required", not spec.get("optional", False)))


def tensor_spec(inputs: list[dict[str, Any]]) -> TensorSpec | None:
    """The tensor of these inputs; None where they are columns.

    Raises:
        SignatureNotSupported: more than one tensor, or one whose rows vary in shape.
    """
    if not any(each.get("type") == "tensor" for each in inputs):
        return None
    if len(inputs) > 1:
        raise SignatureNotSupported(
            f"its signature has {len(inputs)} inputs with a tensor among them; only a single tensor can be served"
        )
    spec = inputs[0].get("tensor-spec") or {}
    dtype, shape = spec.get("dtype"), spec.get("shape")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not all(type(each) is int for each in shape):
        raise SignatureNotSupported("the tensor of its signature has no dtype or shape")
    if not shape or shape[0] != -1 or any(each < 1 for each in shape[1:]):
        raise SignatureNotSupported(
            f"the tensor of its signature has shape {shape}; only the first dimension may, and must, be -1 (the rows)"
        )
    name = inputs[0].get("name")
    return TensorSpec(name if isinstance(name, str) else None, dtype, tuple(shape[1:]))
