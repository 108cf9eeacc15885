"""What a version takes, by its signature, and how text becomes such values. Pure."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


@dataclass(frozen=True)
class Column:
    """One column of a signature, or one of its params."""

    name: str
    type: str  # as MLflow names it: double, long, string, boolean, ...; "any" where there is no signature
    required: bool = False


def columns_of(signature: dict[str, Any] | None) -> list[Column] | None:
    """The columns that a version takes; None where its signature names none, so that anything may be sent."""
    inputs = (signature or {}).get("inputs")
    if isinstance(inputs, str):  # as MLflow writes it into its own files
        inputs = json.loads(inputs)
    if not inputs or any("name" not in each or each.get("type") == "tensor" for each in inputs):
        return None
    return [Column(each["name"], str(each["type"]), bool(each.get("required", True))) for each in inputs]


def params_of(signature: dict[str, Any] | None) -> list[Column]:
    """The signature's own params, which a request may set."""
    params = (signature or {}).get("params") or []
    if isinstance(params, str):
        params = json.loads(params)
    return [Column(each["name"], "any" if each.get("shape") else str(each["type"])) for each in params]


def find_unknown(given: Iterable[str], columns: list[Column] | None) -> list[str]:
    """Which of the names the signature does not have."""
    known = {each.name for each in columns or []}
    return [] if columns is None else [name for name in given if name not in known]


def find_missing(given: Iterable[str], columns: list[Column] | None) -> list[str]:
    """Which required columns are not among the names."""
    there = set(given)
    return [each.name for each in columns or [] if each.required and each.name not in there]


def value_of(text: str, kind: str) -> Any:
    """What a text stands for in a column of this type. Empty text is a missing value.

    Raises:
        ValueError: it is nothing of the kind; says what would be.
    """
    if text == "":
        return None
    if kind in ("double", "float"):
        return _number(text)
    if kind in ("long", "integer"):
        return _whole(text)
    if kind == "boolean":
        return _boolean(text)
    if kind in ("string", "datetime", "binary"):
        return text
    return _json_or_text(text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"'{text}' is no number") from None
    if math.isinf(value):
        raise ValueError(f"'{text}' is not finite, and JSON cannot carry it")
    return None if math.isnan(value) else value  # as pandas and R write what is missing


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        value = _number(text)
    if value is None or value.is_integer():
        return value if value is None else int(value)
    raise ValueError(f"'{text}' is no whole number")


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError(f"'{text}' is neither true nor false")
    return lowered in _TRUE


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
