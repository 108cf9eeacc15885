"""Collecting what is wrong with a request, field by field, up to a bound."""

from typing import Any

from serving.errors import FieldProblem, ValidationFailed

MOST_PROBLEMS = 100
"""A request with a million wrong cells is told of the first ones only."""

_LONGEST_NAME = 100


class Problems:
    """What was found so far in one request. Texts name kinds of values, never the values: they may be personal."""

    def __init__(self) -> None:
        self.found: list[FieldProblem] = []

    def add(self, path: str, problem: str, expected: str) -> None:
        """One more, as long as there is room."""
        if not self.full:
            self.found.append(FieldProblem(path, problem, expected))

    @property
    def full(self) -> bool:
        """Whether looking for more is pointless."""
        return len(self.found) >= MOST_PROBLEMS

    def check(self) -> None:
        """Raises ValidationFailed with all of them, if there are any."""
        if self.found:
            raise ValidationFailed(self.found)


def invalid(path: str, problem: str, expected: str) -> ValidationFailed:
    """The error for a single field."""
    return ValidationFailed([FieldProblem(path, problem, expected)])


def under(path: str, name: str) -> str:
    """The path of a key below a path."""
    return f"{path}.{shortened(name)}"


def shortened(name: str) -> str:
    """A name of the client's, which may be anything, as an answer can show it."""
    key = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    # Only a caller inside the process can give half a surrogate pair; an answer could not carry it.
    return key if key.isascii() else key.encode(errors="replace").decode()


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def listed(names: list[str], most: int = 20) -> str:
    """Names to choose from, the first ones where they are many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
