"""Columns and parameters whose values are lists or objects."""

from collections.abc import Callable, Mapping
from typing import Any

from serving.errors import SignatureNotSupported
from serving.input_schema.cells import Read, WrongCell, read_boolean, read_finite, read_integer, read_string
from serving.input_schema.problems import kind_of, listed
from serving.input_schema.spec import is_required

_DEEPEST = 200  # levels of a value of any type; Python's stack holds some 1,000

# MLflow never narrows numbers inside lists and objects, and takes times and bytes there as Python objects only: what
# JSON can give would be refused by the model itself.
_INNER: dict[str, tuple[Read, str]] = {
    "string": (read_string, "a string"),
    "long": (read_integer, "an integer (long)"),
    "double": (read_finite, "a number (double)"),
    "boolean": (read_boolean, "true or false"),
}


def nested_read(spec: Mapping[str, Any], where: str) -> tuple[Read, str]:
    """How a value of an array, object, map or any is read, and what is expected of it in words.

    `where` names the column or parameter in errors.

    Raises:
        SignatureNotSupported: the type is unknown, or cannot come out of JSON.
    """
    name = spec.get("type")
    if name in _INNER:
        return _within(*_INNER[name])
    kind = _NESTED.get(name) if isinstance(name, str) else None
    if kind is None:
        raise SignatureNotSupported(
            f"{where} holds values of type {name!r} inside a list or object; possible there: "
            f"{listed([*_INNER, *_NESTED])}"
        )
    return kind(spec, where)


def array_depth(spec: Mapping[str, Any]) -> int:
    """How many lists lie around an item: 1 for an array of numbers, 0 for what is no array."""
    items = spec.get("items")
    return 1 + array_depth(items) if spec.get("type") == "array" and isinstance(items, Mapping) else 0


def _within(read: Read, expected: str) -> tuple[Read, str]:
    """The same, saying in its problems what was expected: inside a cell that is not what the cell expects."""

    def inner(value: Any) -> Any:
        try:
            result = read(value)
        except WrongCell as wrong:
            raise WrongCell(wrong.problem, wrong.expected or expected, wrong.below) from None
        if result != result:
            raise WrongCell("NaN", expected)
        return result

    return inner, expected


def _below(read: Read, value: Any, part: str) -> Any:
    try:
        return read(value)
    except WrongCell as wrong:
        raise WrongCell(wrong.problem, wrong.expected, part + wrong.below) from None


def _array(spec: Mapping[str, Any], where: str) -> tuple[Read, str]:
    read_item, item = nested_read(_inner_spec(spec, "items", where), where)
    expected = f"a list, each of it {item}"

    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise WrongCell(kind_of(value), expected)
        return [_below(read_item, each, f"[{at}]") for at, each in enumerate(value)]

    return read, expected


def _map(spec: Mapping[str, Any], where: str) -> tuple[Read, str]:
    read_value, each = nested_read(_inner_spec(spec, "values", where), where)
    expected = f"an object, each value of it {each}"

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise WrongCell(kind_of(value), expected)
        return {read_string(key): _below(read_value, inner, f".{key}") for key, inner in value.items()}

    return read, expected


def _object(spec: Mapping[str, Any], where: str) -> tuple[Read, str]:
    properties = _inner_spec(spec, "properties", where)
    reads = {name: _property(inner, where) for name, inner in properties.items()}
    required = {name for name, inner in properties.items() if is_required(inner)}
    expected = f"an object of {listed(list(reads))}"

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise WrongCell(kind_of(value), expected)
        if unknown := value.keys() - reads.keys():
            raise WrongCell(f"{len(unknown)} unknown keys", expected)
        if missing := required - value.keys():
            raise WrongCell("missing", "a value", f".{min(missing)}")
        return {name: _below(reads[name], inner, f".{name}") for name, inner in value.items()}

    return read, expected


def _property(spec: Any, where: str) -> Read:
    if not isinstance(spec, Mapping):
        raise SignatureNotSupported(f"{where} has a property without a type")
    read, _ = nested_read(spec, where)
    return read if is_required(spec) else lambda value: None if value is None else read(value)


def _any(_: Mapping[str, Any], __: str) -> tuple[Read, str]:
    return _read_any, "any value"


def _read_any(value: Any) -> Any:
    _check_json(value, _DEEPEST)
    return value


def _check_json(value: Any, room: int) -> None:
    """Raises WrongCell where the value, or one inside it, would not come through JSON as it is."""
    if room == 0:
        raise WrongCell("nested too deeply", "a value")
    if isinstance(value, str):
        read_string(value)
    elif isinstance(value, float):
        read_finite(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            read_string(key)
            _check_json(inner, room - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json(inner, room - 1)


def _inner_spec(spec: Mapping[str, Any], part: str, where: str) -> Mapping[str, Any]:
    inner = spec.get(part)
    if not isinstance(inner, Mapping):
        raise SignatureNotSupported(f"{where} is of type {spec.get('type')} but its signature does not say its {part}")
    return inner


_NESTED: dict[str, Callable[[Mapping[str, Any], str], tuple[Read, str]]] = {
    "array": _array,
    "object": _object,
    "map": _map,
    "any": _any,
}
