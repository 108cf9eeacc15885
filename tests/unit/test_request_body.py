"""The body of a predict request: what is read from it, and what is said of one that is wrong."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts import InferenceRequest
from serving.errors import NotJson, ValidationFailed
from serving.request_body import KEYS, ReadRequest, read_request

OURS = UUID("0192d7a4-6f1e-7c3b-9a55-0242ac120002")
THEIRS = UUID("7b5e5fd6-9a3c-4a54-8a3b-3c1f0d8d7a10")
ARRIVAL = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def read(body: Any, *, client_timestamps: bool = True) -> ReadRequest:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return read_request("flights", data, new_id=lambda: OURS, arrival=ARRIVAL, client_timestamps=client_timestamps)


def problems(body: Any) -> dict[str, str]:
    with pytest.raises(ValidationFailed) as raised:
        read(body)
    return {each.path: each.problem for each in raised.value.fields}


def test_a_full_request() -> None:
    """What a client says of its request would be lost."""
    body = {
        "input_data": {"a": 1},
        "request_id": str(THEIRS).upper(),
        "parameters": {"threshold": 0.5},
        "timestamp": "2013-04-01T12:00:00+02:00",
        "user_id": "ada",
    }
    event = datetime(2013, 4, 1, 10, tzinfo=UTC)
    expected = InferenceRequest(THEIRS, "flights", {"a": 1}, {"threshold": 0.5}, event, "ada")
    assert read(body) == (expected, True)


def test_only_input_data_is_needed() -> None:
    """The simplest request of all would be refused."""
    expected = (InferenceRequest(OURS, "flights", {"a": 1}, {}, ARRIVAL, None), False)
    assert read({"input_data": {"a": 1}}) == expected
    assert read({"input_data": {"a": 1}, "parameters": None, "request_id": None, "timestamp": None}) == expected


def test_event_time_is_the_clients_only_where_that_is_allowed() -> None:
    """A client with a wrong clock would move its requests out of the window that they belong to."""
    body = {"input_data": {}, "timestamp": "2013-04-01T12:00:00"}
    assert read(body).request.timestamp == datetime(2013, 4, 1, 12, tzinfo=UTC)
    assert read(body, client_timestamps=False).request.timestamp == ARRIVAL
    with pytest.raises(ValidationFailed):
        read({"input_data": {}, "timestamp": "soon"}, client_timestamps=False)


def test_two_requests_share_nothing() -> None:
    """What is added to one client's parameters would show up in another's."""
    first, second = (read({"input_data": {"a": 1}}).request for _ in range(2))
    first.parameters["threshold"] = 1
    assert second.parameters == {}


@pytest.mark.parametrize(
    ("body", "path", "problem"),
    [
        ([], "body", "a list"),
        (5, "body", "a number"),
        ({}, "input_data", "missing"),
        ({"input_data": None}, "input_data", "null"),
        ({"input_data": [1]}, "input_data", "a list"),
        ({"parameters": [1]}, "parameters", "a list"),
        ({"inputs": {}}, "inputs", "unknown key"),
        ({"x" * 500: {}}, "x" * 100 + "...", "unknown key"),
        ({"request_id": 5}, "request_id", "a number"),
        ({"request_id": "5"}, "request_id", "no UUID"),
        ({"request_id": f"{{{THEIRS}}}"}, "request_id", "no UUID"),
        ({"request_id": THEIRS.hex}, "request_id", "no UUID"),
        ({"request_id": f"{THEIRS}\n"}, "request_id", "no UUID"),
        ({"timestamp": 1.5}, "timestamp", "a number"),
        ({"timestamp": "yesterday"}, "timestamp", "no time"),
        ({"timestamp": "1969-12-31T23:59:59Z"}, "timestamp", "1969"),
        ({"timestamp": "2201-01-01"}, "timestamp", "2201"),
        ({"timestamp": "0001-01-01T00:00:00+10:00"}, "timestamp", "no time"),
        ({"user_id": ""}, "user_id", "0 characters"),
        ({"user_id": "x" * 257}, "user_id", "257 characters"),
        ({"user_id": "a\0b"}, "user_id", "3 characters"),
        ({"user_id": 5}, "user_id", "a number"),
    ],
)
def test_what_is_wrong_is_named(body: Any, path: str, problem: str) -> None:
    """Whoever sends it would have to guess."""
    assert problem in problems(body)[path]


def test_all_that_is_wrong_is_told_at_once() -> None:
    """A client would mend one key, ask again, and learn of the next."""
    body = {"parameters": 1, "request_id": 1, "timestamp": 1, "user_id": 1, "more": 1}
    assert problems(body).keys() == {"input_data", "more", *body}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b'{"input_data": 1', "line 1, column"),
        (b'{"input_data":\n {"a": NaN}}', "bare word NaN at line 2"),
        (b'{"input_data": {"a": -Infinity}}', "bare word -Infinity"),
        (b'{"input_data": {"a": Infinity}}', '"Infinity"'),
        (b'{"input_data": {"a": nan}}', "null"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 5000, "depth"),
        (b'{"input_data": {"a": 1e999}}', "infinity"),
    ],
)
def test_what_is_not_json_says_where(body: bytes, said: str) -> None:
    """A broken encoder on the client's side would be searched for in the dark."""
    with pytest.raises(NotJson) as raised:
        read(body)
    assert said in raised.value.detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
TIMES = st.datetimes().map(str) | st.from_regex(
    r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?)?", fullmatch=True
)


@given(
    st.binary(max_size=50)
    | JSON.map(orjson.dumps)
    | st.dictionaries(st.sampled_from(KEYS), JSON | TIMES).map(orjson.dumps)
    | st.text(alphabet='{}[]":,NaInfinity-0123456789e.tru \n', max_size=30).map(str.encode)
)
def test_nothing_but_a_request_or_a_refusal_comes_out(body: bytes) -> None:
    """Somebody's strange body would be a 500, and look like our fault."""
    try:
        found = read(body)
    except (NotJson, ValidationFailed) as error:
        orjson.dumps(error.body())
    else:
        assert found.request.timestamp.tzinfo is UTC
