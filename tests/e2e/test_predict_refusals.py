"""Requests that cannot be answered: each is told what is wrong with it, and where."""

import math
import uuid
from typing import Any

import httpx
import pytest

from tests.e2e.house import ServingHouse, columns_of, record_of, together
from tests.models import PILL, Zoo, ZooModel

JSON = {"content-type": "application/json"}
RECORD = {"a": 0.5, "b": -0.5}


@pytest.fixture(scope="module")
def flights(house: ServingHouse, zoo: Zoo) -> ZooModel:
    """Served as `refusing-flights`: strings, numbers, booleans, some of which may be missing."""
    model = zoo.get("columns")
    house.serve(model, "refusing-flights", max_rows=50)
    return model


@pytest.fixture(scope="module")
def choosy(house: ServingHouse, zoo: Zoo) -> str:
    """Served as `choosy`: two numbers, and one value of the first that it raises on."""
    return house.serve(zoo.get("raises"), "choosy")


def refused(answer: httpx.Response, status: int, error: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert body["error"] == error, body
    assert body["detail"]
    return body


def test_an_unknown_model_is_named_with_the_known_ones(house: ServingHouse, choosy: str) -> None:
    """Whoever mistypes a name would not learn what it should have been."""
    body = refused(house.predict("chosy", {"input_data": RECORD}), 404, "ModelNotFound")
    assert body["model_id"] == "chosy"
    assert choosy in body["known"]
    assert choosy in body["detail"]


def test_a_model_that_nothing_is_loaded_of_asks_to_come_again(house: ServingHouse, zoo: Zoo) -> None:
    """A client would take a model that is about to come for one that does not exist."""
    house.keep(zoo.get("unpickling-raises").folder, "not-there-yet", "1")
    house.route("not-there-yet", {"1": 1.0})
    house.wait_applied()
    answer = house.predict("not-there-yet", {"input_data": RECORD})
    refused(answer, 503, "NotReady")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "body",
    [b"{'input_data': 1}", b"", b'{"input_data": {"a": NaN, "b": 1.0}}', b'{"input_data": {"a": 1e999', b"[" * 5000],
)
def test_what_is_not_json_is_a_400(house: ServingHouse, choosy: str, body: bytes) -> None:
    """A client's broken encoder would be taken for wrong values, or for our fault."""
    assert refused(house.predict(choosy, body), 400, "NotJson")["problem"]


def test_another_content_type_is_a_415(house: ServingHouse, choosy: str) -> None:
    """A web page could send requests that no browser asks about first."""
    answer = house.predict(choosy, b'{"input_data": {}}', headers={"content-type": "text/plain"})
    assert refused(answer, 415, "WrongContentType")["given"] == "text/plain"


# The body, and the path of what is wrong with it.
WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([], "body"),
    "a text": ("input_data", "body"),
    "no input": ({}, "input_data"),
    "input is no object": ({"input_data": [1, 2]}, "input_data"),
    "input is null": ({"input_data": None}, "input_data"),
    "unknown key": ({"input_data": RECORD, "inputs": {}}, "inputs"),
    "missing column": ({"input_data": {"a": 1.0}}, "input_data.b"),
    "unknown column": ({"input_data": {**RECORD, "c": 1.0}}, "input_data.c"),
    "text for a number": ({"input_data": {"a": "1.0", "b": 0.0}}, "input_data.a"),
    "boolean for a number": ({"input_data": {"a": True, "b": 0.0}}, "input_data.a"),
    "null for a number": ({"input_data": {"a": {}, "b": 0.0}}, "input_data.a"),
    "wrong type in a row": ({"input_data": {"a": [1.0, "x"], "b": [1.0, 2.0]}}, "input_data.a[1]"),
    "unequal lengths": ({"input_data": {"a": [1.0, 2.0], "b": [1.0]}}, "input_data.b"),
    "column and value mixed": ({"input_data": {"a": [1.0, 2.0], "b": 1.0}}, "input_data.b"),
    "empty batch": ({"input_data": {"a": [], "b": []}}, "input_data"),
    "no columns": ({"input_data": {}}, "input_data"),
    "unknown parameter": ({"input_data": RECORD, "parameters": {"treshold": 0.5}}, "parameters.treshold"),
    "wrong parameter": ({"input_data": RECORD, "parameters": {"threshold": "high"}}, "parameters.threshold"),
    "threshold beyond one": ({"input_data": RECORD, "parameters": {"threshold": 1.5}}, "parameters.threshold"),
    "parameters are no object": ({"input_data": RECORD, "parameters": [1]}, "parameters"),
    "bad uuid": ({"input_data": RECORD, "request_id": "12345"}, "request_id"),
    "request id is a number": ({"input_data": RECORD, "request_id": 5}, "request_id"),
    "bad time": ({"input_data": RECORD, "timestamp": "yesterday"}, "timestamp"),
    "user is a number": ({"input_data": RECORD, "user_id": 5}, "user_id"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_is_a_422_with_its_path(house: ServingHouse, choosy: str, name: str) -> None:
    """Whoever sends it would have to guess which of a hundred fields is meant."""
    body, path = WRONG[name]
    found = refused(house.predict(choosy, body), 422, "ValidationFailed")
    assert all(each.keys() == {"path", "problem", "expected"} for each in found["fields"])
    paths = [each["path"] for each in found["fields"]]
    assert any(each == path or each.startswith(f"{path}.") for each in paths), found


def test_every_wrong_field_is_named_at_once(house: ServingHouse, flights: ZooModel) -> None:
    """A client would mend one field, ask again, and learn of the next one."""
    record = {**record_of(flights.sample), "origin": 5, "distance": 1.5, "extra": 1}
    del record["hour"]
    body = refused(house.predict("refusing-flights", {"input_data": record}), 422, "ValidationFailed")
    paths = {each["path"] for each in body["fields"]}
    assert {f"input_data.{name}" for name in ("origin", "distance", "extra", "hour")} <= paths


def test_a_refusal_repeats_no_values(house: ServingHouse, flights: ZooModel) -> None:
    """What people are asked about would stand in the logs of every client that writes errors down."""
    record = {**record_of(flights.sample), "distance": "a very private thing"}
    assert "private" not in house.predict("refusing-flights", {"input_data": record}).text
    assert "private" not in house.plane.log.read_text()


def test_too_many_rows_are_refused(house: ServingHouse, flights: ZooModel) -> None:
    """One client's batch would hold up everybody's requests."""
    columns = columns_of(flights.sample.head(51))
    body = refused(house.predict("refusing-flights", {"input_data": columns}), 422, "ValidationFailed")
    assert "50" in body["detail"]
    assert house.predict("refusing-flights", {"input_data": columns_of(flights.sample.head(50))}).status_code == 200


def test_a_body_over_the_limit_is_a_413(house: ServingHouse, choosy: str) -> None:
    """A single request could take all memory."""
    limit = 8 * 2**20  # the setting's default
    answer = house.predict(choosy, b'{"input_data": {"a": "' + b"x" * limit + b'"}}')
    assert refused(answer, 413, "BodyTooLarge")["limit_bytes"] == limit


def test_gaps_are_taken_where_the_signature_allows_them(house: ServingHouse, flights: ZooModel) -> None:
    """Real data have gaps: a model that was trained with them could not be asked about most rows."""
    record = record_of(flights.sample.dropna())
    full = house.ask("refusing-flights", record)["predictions"]
    for gap in ({**record, "temp": None}, {**record, "temp": "NaN"}, {**record, "carrier": None}):
        answer = house.ask("refusing-flights", gap)["predictions"]
        assert 0 <= answer[0]["probabilities"]["1"] <= 1
    assert full
    for name in ("origin", "hour", "night"):
        refused(house.predict("refusing-flights", {"input_data": {**record, name: None}}), 422, "ValidationFailed")


def test_infinity_reaches_a_model_that_can_bear_it(house: ServingHouse, flights: ZooModel) -> None:
    """JSON has no word for it, so it has to be spelled; and a tree is not troubled by it."""
    record = record_of(flights.sample.dropna())
    answers = {
        value: house.ask("refusing-flights", {**record, "temp": value})["predictions"][0]
        for value in ("Infinity", "-Infinity")
    }
    high = house.ask("refusing-flights", {**record, "temp": 1e12})["predictions"][0]
    assert math.isclose(answers["Infinity"]["probabilities"]["1"], high["probabilities"]["1"])


def test_a_model_that_raises_on_one_row_names_it(house: ServingHouse, choosy: str) -> None:
    """One bad row among many would have to be searched for by hand."""
    columns = {"a": [0.1] * 17 + [PILL] + [0.2] * 12, "b": [0.0] * 30}
    answer = house.predict(choosy, {"input_data": columns})
    body = refused(answer, 500, "model_error")
    assert (body["row"], body["model_id"], body["version"]) == (17, choosy, "1")
    assert body["exception"] == "ArithmeticError"
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text


def test_the_others_in_a_batch_do_not_suffer(house: ServingHouse, choosy: str) -> None:
    """One client's bad row would fail the requests of whoever happened to share a batch with it."""
    good, bad = {"input_data": RECORD}, {"input_data": {"a": PILL, "b": 0.0}}
    expected = house.ask(choosy, RECORD)["predictions"][0]["probabilities"]
    for _ in range(5):
        bodies = [bad if each % 8 == 3 else good for each in range(32)]
        answers = together(house, choosy, bodies)
        assert [each.status_code for each in answers] == [500 if body is bad else 200 for body in bodies]
        probabilities = [each.json()["predictions"][0]["probabilities"] for each in answers if each.status_code == 200]
        assert all(each == pytest.approx(expected) for each in probabilities)


def test_an_answer_of_too_few_rows_is_no_answer(house: ServingHouse, zoo: Zoo) -> None:
    """A model that leaves rows out would answer each client with another one's prediction."""
    house.serve(zoo.get("shrinks"), "shrinking")
    columns = {"a": [1.0, PILL, 2.0], "b": [0.0, 0.0, 0.0]}
    refused(house.predict("shrinking", {"input_data": columns}), 500, "model_error")
    assert len(house.ask("shrinking", {"a": [1.0, 2.0], "b": [0.0, 0.0]})["predictions"]) == 2


@pytest.mark.parametrize("header", ["soon", "-1", "0", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(house: ServingHouse, choosy: str, header: str) -> None:
    """A client that thinks it has set a deadline would wait for ever."""
    answer = house.predict(choosy, {"input_data": RECORD}, headers={"x-request-timeout": header})
    assert answer.status_code == 422, answer.text


def test_every_refusal_carries_the_requests_id(house: ServingHouse, choosy: str) -> None:
    """A user who reports an error could not be found in the log."""
    given = str(uuid.uuid4())
    for body in (b"{", b'{"input_data": {}}'):
        answer = house.predict(choosy, body, headers={"x-request-id": given})
        assert answer.headers["x-request-id"] == given
