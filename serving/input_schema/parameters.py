"""The `parameters` of a request: ours, and those that the version's signature declares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.contracts import Parameters
from serving.errors import SignatureNotSupported
from serving.input_schema.cells import (
    INTEGER,
    Read,
    WrongCell,
    read_boolean,
    read_datetime,
    read_finite,
    read_integer,
    read_string,
)
from serving.input_schema.nested import nested_read
from serving.input_schema.problems import Problems, invalid, kind_of, listed, under

ROOT = "parameters"

_SCALARS: dict[str, tuple[Read, str]] = {
    "double": (read_finite, "a number (double)"),
    "float": (read_finite, "a number (float)"),
    "long": (read_integer, "an integer (long)"),
    "integer": (lambda value: read_integer(value, -INTEGER - 1, INTEGER), "an integer (32 bit)"),
    "boolean": (read_boolean, "true or false"),
    "string": (read_string, "a string"),
    "datetime": (read_datetime, "a time in ISO 8601"),
}


@dataclass(frozen=True)
class _Param:
    read: Read
    expected: str
    default: Any


class ParameterReader:
    """Which parameters a version takes. A param of its signature hides one of ours with the same name."""

    def __init__(self, specs: list[dict[str, Any]] | None) -> None:
        """Raises SignatureNotSupported for a param whose values cannot come out of JSON."""
        self._params = dict(map(_compile, specs or []))
        self.defaults = {name: each.default for name, each in self._params.items()}
        self._ours = [each for each in ("threshold", "return_probabilities") if each not in self._params]
        self._nothing_given = Parameters(None, True, self.defaults)

    def read(self, given: dict[str, Any], *, binary: bool, classifier: bool) -> Parameters:
        """The parameters, those left out by their defaults. `params` is not to be changed.

        Raises:
            ValidationFailed: unknown ones, wrong types, and ours where the model is not of the kind for them.
        """
        if given == {}:
            return self._nothing_given
        if not isinstance(given, dict):
            raise invalid(ROOT, kind_of(given), "an object")
        problems = Problems()
        ours: dict[str, Any] = {"threshold": None, "return_probabilities": True}
        params = dict(self.defaults)
        for name, value in given.items():
            if name in self._params:
                params[name] = self._param(name, value, problems)
            elif name == "threshold":
                ours[name] = _threshold(value, problems, binary=binary)
            elif name == "return_probabilities":
                ours[name] = _return_probabilities(value, problems, classifier=classifier)
            else:
                problems.add(under(ROOT, str(name)), "unknown parameter", f"one of {listed(self._known)}")
        problems.check()
        return Parameters(**ours, params=params)

    @property
    def _known(self) -> list[str]:
        return [*self._params, *self._ours]

    def _param(self, name: str, value: Any, problems: Problems) -> Any:
        param = self._params[name]
        if value is None and param.default is None:
            return None
        try:
            return param.read(value)
        except WrongCell as wrong:
            problems.add(under(ROOT, name) + wrong.below, wrong.problem, wrong.expected or param.expected)
            return None


def _threshold(value: Any, problems: Problems, *, binary: bool) -> Any:
    path = under(ROOT, "threshold")
    if not binary:
        problems.add(path, "not possible for this model", "it only with a classifier of two classes with probabilities")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        problems.add(path, kind_of(value), "a number from 0 to 1")
    return value


def _return_probabilities(value: Any, problems: Problems, *, classifier: bool) -> Any:
    path = under(ROOT, "return_probabilities")
    if not classifier:
        problems.add(path, "not possible for this model", "it only with a classifier")
    elif not isinstance(value, bool):
        problems.add(path, kind_of(value), "true or false")
    return value


def _compile(spec: Mapping[str, Any]) -> tuple[str, _Param]:
    name, shape, default = spec.get("name"), spec.get("shape"), spec.get("default")
    if not isinstance(name, str):
        raise SignatureNotSupported("one of its params has no name")
    where = f"param '{name}'"
    type_name = spec.get("type")
    read, expected = _SCALARS.get(str(type_name)) or nested_read(spec, where)
    read = _present(read)
    if shape is not None:
        if shape not in ([-1], (-1,)):
            raise SignatureNotSupported(f"{where} has shape {shape}; possible: none, or [-1]")
        read, expected = _list_of(read), f"a list, each of it {expected}"
    try:
        return name, _Param(read, expected, None if default is None else read(default))
    except WrongCell as wrong:
        raise SignatureNotSupported(f"the default of {where} is {wrong.problem}, where it says {expected}") from None


def _present(read: Read) -> Read:
    def needed(value: Any) -> Any:
        if value is None:
            raise WrongCell("null")
        result = read(value)
        if result != result:
            raise WrongCell("NaN")
        return result

    return needed


def _list_of(read: Read) -> Read:
    def each(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise WrongCell(kind_of(value))
        return [_item(read, inner, at) for at, inner in enumerate(value)]

    return each


def _item(read: Read, value: Any, at: int) -> Any:
    try:
        return read(value)
    except WrongCell as wrong:
        raise WrongCell(wrong.problem, wrong.expected or "an element of the type", f"[{at}]{wrong.below}") from None
