"""The body of a predict request, from bytes to an InferenceRequest. Pure: ids and arrival are given to it."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from serving.contracts import InferenceRequest
from serving.input_schema import Problems, kind_of, read_object, shortened

KEYS = ("input_data", "request_id", "parameters", "timestamp", "user_id")
"""What a body may have, the first of which it must."""

LONGEST_USER_ID = 256

_KNOWN = frozenset(KEYS)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_FIRST_YEAR, _LAST_YEAR = 1970, 2200


class ReadRequest(NamedTuple):
    """A request, and whether its id is the client's own, who then may send it again."""

    request: InferenceRequest
    id_given: bool


def read_request(
    model_id: str, body: bytes, *, new_id: Callable[[], UUID], arrival: datetime, client_timestamps: bool
) -> ReadRequest:
    """The request in `body`; its `input_data` and `parameters` are objects, not yet held against a signature.

    `new_id` is called where the client gave none. Event time is the client's `timestamp` with `client_timestamps`,
    else, and where there is none, `arrival` (UTC).

    Raises:
        NotJson: it is not JSON; says where.
        ValidationFailed: with every field that is wrong.
    """
    given = read_object(body)
    input_data, user_id = given.get("input_data"), given.get("user_id")
    # As most requests come: the record, perhaps with its user, and nothing else.
    if type(input_data) is dict and len(given) == 1 + ("user_id" in given) and _is_user_id(user_id):
        return ReadRequest(InferenceRequest(new_id(), model_id, input_data, {}, arrival, user_id), False)
    problems = Problems()
    _check_keys(given, problems)
    input_data = _input_data(given, problems)
    parameters = _parameters(given.get("parameters"), problems)
    request_id = _request_id(given.get("request_id"), problems)
    timestamp = _timestamp(given.get("timestamp"), problems)
    user_id = _user_id(given.get("user_id"), problems)
    problems.check()
    event = timestamp if client_timestamps and timestamp is not None else arrival
    request = InferenceRequest(request_id or new_id(), model_id, input_data, parameters, event, user_id)
    return ReadRequest(request, request_id is not None)


def _check_keys(given: dict[str, Any], problems: Problems) -> None:
    if given.keys() <= _KNOWN:
        return
    for name in given:
        if name not in _KNOWN:
            problems.add(shortened(name), "unknown key", f"one of {', '.join(KEYS)}")


def _input_data(given: dict[str, Any], problems: Problems) -> dict[str, Any]:
    value = given.get("input_data")
    if type(value) is dict:
        return value
    was = kind_of(value) if "input_data" in given else "missing"
    problems.add("input_data", was, "an object: one record, or a list for each column")
    return {}


def _parameters(value: Any, problems: Problems) -> dict[str, Any]:
    if value is None:
        return {}
    if type(value) is dict:
        return value
    problems.add("parameters", kind_of(value), "an object")
    return {}


def _request_id(value: Any, problems: Problems) -> UUID | None:
    if value is None:
        return None
    if isinstance(value, str) and _UUID.fullmatch(value):
        return UUID(value)
    was = "a string that is no UUID" if isinstance(value, str) else kind_of(value)
    problems.add("request_id", was, "a UUID, such as 0192d7a4-6f1e-7c3b-9a55-0242ac120002")
    return None


def _timestamp(value: Any, problems: Problems) -> datetime | None:
    if value is None:
        return None
    expected = f"a time in ISO 8601 from {_FIRST_YEAR} to {_LAST_YEAR}, such as 2013-04-01T12:00:00Z"
    if not isinstance(value, str):
        problems.add("timestamp", kind_of(value), expected)
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        problems.add("timestamp", "a string that is no time", expected)
        return None
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        problems.add("timestamp", f"in the year {moment.year}", expected)
        return None
    return moment


def _user_id(value: Any, problems: Problems) -> str | None:
    if _is_user_id(value):
        return None if value is None else str(value)
    was = f"a string of {len(value)} characters" if isinstance(value, str) else kind_of(value)
    problems.add("user_id", was, f"a string of 1 to {LONGEST_USER_ID} characters, none of them NUL")
    return None


def _is_user_id(value: Any) -> bool:
    # A NUL cannot be kept by every database that this id goes to.
    return value is None or (isinstance(value, str) and 0 < len(value) <= LONGEST_USER_ID and "\0" not in value)
