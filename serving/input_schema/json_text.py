"""From the bytes of a body to a JSON object."""

import re
from typing import Any

import orjson

from serving.errors import NotJson
from serving.input_schema.problems import invalid, kind_of

_NOT_A_NUMBER = re.compile(r"-?(NaN|Infinity)\b", re.IGNORECASE)


def read_object(body: bytes) -> dict[str, Any]:
    """The object in `body`.

    Raises:
        NotJson: it is not JSON; says where.
        ValidationFailed: it is JSON, but no object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJson(_described(error)) from None
    if type(value) is not dict:
        raise invalid("body", kind_of(value), "an object")
    return value


def _described(error: orjson.JSONDecodeError) -> str:
    where = f"line {error.lineno}, column {error.colno}"
    # Many JSON writers put these where a number is missing; the reader points at the word or behind its sign.
    literal = _NOT_A_NUMBER.match(error.doc, max(0, error.pos - 1)) or _NOT_A_NUMBER.match(error.doc, error.pos)
    if literal:
        return (
            f"the bare word {literal.group()} at {where} is not JSON; write null or the text "
            '"NaN" for a missing number, and the texts "Infinity" or "-Infinity" for the infinite ones'
        )
    return f"{error.msg} at {where}"
