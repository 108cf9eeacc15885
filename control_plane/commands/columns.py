"""What a version takes, by its signature, and how text becomes such values. Pure."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})
_SHOWN = 40
# What orjson says of a value -> what a person can do about it.
_UNSENDABLE = {
    "Integer exceeds": "holds a whole number beyond 64 bits; they go from -2^63 to 2^64-1, or write it as a text",
    "surrogates": "is no UTF-8 text",
    "Recursion limit": "is nested too deeply",
}


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
        ValueError: it is nothing of the kind, or cannot travel; says what would be right.
    """
    if text == "":
        return None
    if kind in ("double", "float"):
        return _number(text)
    if kind in ("long", "integer"):
        return _whole(text)
    if kind == "boolean":
        return _boolean(text)
    value = text if kind in ("string", "datetime", "binary") else _json_or_text(text)
    if why := why_unsendable(value):
        raise ValueError(f"{shown(text)} {why}")
    return value


def carried(value: Any) -> Any:
    """A cell of a table as JSON carries it: NaN is missing, what is infinite is spelled, as the API takes both."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else _spelled(value)
    if isinstance(value, list):
        return [carried(each) for each in value]
    return {name: carried(each) for name, each in value.items()} if isinstance(value, dict) else value


def why_unsendable(value: Any) -> str | None:
    """What keeps a value from being sent as JSON, and what would be right; None where nothing does."""
    try:
        orjson.dumps(value, default=str)
    except TypeError as error:  # also orjson.JSONEncodeError
        known = next((words for sign, words in _UNSENDABLE.items() if sign in str(error)), None)
        return known or f"cannot be sent as JSON ({error})"
    return None


def shown(text: str) -> str:
    """A text in quotes, short enough for a message, and such that any terminal can print it."""
    printable = text.encode("utf-8", "backslashreplace").decode()
    return f"'{printable}'" if len(printable) <= _SHOWN else f"'{printable[:_SHOWN]}...'"


def _spelled(infinite: float) -> str:
    return "Infinity" if infinite > 0 else "-Infinity"


def _number(text: str) -> float | str | None:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is no number") from None
    if math.isinf(value):
        if "inf" not in text.lower():
            raise ValueError(f"{shown(text)} is too large; the largest number is 1.8e308")
        return _spelled(value)
    return None if math.isnan(value) else value  # as pandas and R write what is missing


def _whole(text: str) -> int | None:
    try:
        value: float | str | None = int(text)
    except ValueError:
        value = _number(text)
    if isinstance(value, str) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{shown(text)} is no whole number")
    if value is not None and not -(2**63) <= value < 2**63:
        raise ValueError(f"{shown(text)} is beyond 64 bits; whole numbers go from -2^63 to 2^63-1")
    return None if value is None else int(value)


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError(f"{shown(text)} is neither true nor false")
    return lowered in _TRUE


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=str)  # NaN and Infinity are no JSON: they stay texts
    except (ValueError, RecursionError):
        return text
