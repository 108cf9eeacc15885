"""One answer and one row for each request id of a client, whatever is killed or taken away in between."""

import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.data_plane import GUARD, eventually
from tests.e2e.house import ServingHouse, columns_of, record_of, together
from tests.e2e.test_predict_log import _move, _move_back
from tests.models import Zoo, ZooModel

MODEL = "logistic"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, zoo: Zoo) -> Iterator[ServingHouse]:
    """Two HTTP processes, in a house of their own: they are killed in it."""
    house = ServingHouse(tmp_path_factory.mktemp("once"), api_processes=2)
    try:
        house.serve(zoo.get(MODEL), MODEL)
        yield house
    finally:
        house.end()


@pytest.fixture(scope="module")
def model(zoo: Zoo) -> ZooModel:
    """Served as MODEL: a classifier with probabilities."""
    return zoo.get(MODEL)


def a_body(model: ZooModel, row: int = 0) -> dict[str, Any]:
    """A question with an id; the user is that id too, so that its rows can be found."""
    given = str(uuid.uuid4())
    parameters = {"return_probabilities": True}
    return {"input_data": record_of(model.sample, row), "request_id": given, "user_id": given, "parameters": parameters}


def ask(house: ServingHouse, body: dict[str, Any]) -> httpx.Response:
    """On a connection of its own, which any HTTP process may take; again where one was killed under it."""

    def once() -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{house.plane.port}/ml/models/{MODEL}/predict", json=body, timeout=GUARD)

    return eventually(lambda: answer if (answer := once()).status_code != 503 else None, "an answer")


def is_repeated(first: dict[str, Any], again: dict[str, Any]) -> bool:
    """Whether it was given again; fails where it then differs from the first."""
    if "repeated" not in again["metadata"]:
        return False
    assert again["processing_time"] == pytest.approx(first["processing_time"], abs=2e-6)
    for name in ("request_id", "predictions", "confidence_scores", "model_version"):
        assert again[name] == first[name]
    return True


def rows_of(house: ServingHouse, body: dict[str, Any]) -> int:
    """How many rows of the log this user has, once all that was asked before now is in it."""
    marker = str(uuid.uuid4())
    for _ in range(8):  # by every HTTP process: each has a spool of its own
        ask(house, {**body, "request_id": str(uuid.uuid4()), "user_id": marker})
    query = "SELECT count(*) FROM prediction WHERE unit = :unit"
    eventually(lambda: house.rows(query, unit=marker)[0][0] == 8, "the log to have all")
    return int(house.rows(query, unit=body["user_id"])[0][0])


def kill_all(house: ServingHouse) -> None:
    """SIGKILL for every HTTP process; returns when others have taken their place."""
    dead = eventually(lambda: apis if len(apis := house.plane.apis()) == 2 else None, "two HTTP processes")
    for each in dead:
        each.kill()
    old = {each.pid for each in dead}
    eventually(lambda: len([each for each in house.plane.apis() if each.pid not in old]) == 2, "two new ones")


def restart_without_kept_answers(house: ServingHouse) -> None:
    """As on another host, or after the folder was lost: only the database knows."""
    house.plane.end()
    shutil.rmtree(house.home / f"data-plane-{house.plane.port}" / "answers")
    house.start()
    house.plane.ready()


def test_a_process_that_is_killed_takes_no_answer_along(own: ServingHouse, model: ZooModel) -> None:
    """A client that retries because the process died under it would be counted twice."""
    body = a_body(model)
    first = ask(own, body)
    assert first.status_code == 200, first.text
    kill_all(own)
    assert is_repeated(first.json(), ask(own, body).json())
    other = ask(own, {**body, "input_data": record_of(model.sample, 1)})
    assert (other.status_code, other.json()["error"]) == (422, "RequestIdReused")
    assert rows_of(own, body) == 1


def test_http_processes_know_of_each_others_answers(own: ServingHouse, model: ZooModel) -> None:
    """A retry on a new connection would be computed again by the process that happens to take it."""
    body = a_body(model)
    first = ask(own, body).json()

    def another_process_was_asked() -> bool:
        answers = [each.json() for each in together(own, MODEL, [body] * 16)]
        assert all(each == first or is_repeated(first, each) for each in answers)
        return any("repeated" in each["metadata"] for each in answers)

    eventually(another_process_was_asked, "the other process to be asked")
    assert rows_of(own, body) == 1


def test_the_database_knows_what_nobody_else_does(own: ServingHouse, model: ZooModel) -> None:
    """After ten minutes, or on another host, a retry would be computed again."""
    bodies = [a_body(model, row % 5) for row in range(100)]
    bodies[0]["input_data"] = columns_of(model.sample.head(5))
    firsts = [ask(own, body).json() for body in bodies]
    before = {each["user_id"] for each in bodies}
    rows = "SELECT unit FROM prediction"
    eventually(lambda: before <= {unit for (unit,) in own.rows(rows)}, "the rows in the database")
    behind = "SELECT max(last_id) >= (SELECT max(id) FROM prediction) FROM payload_chunk"
    eventually(lambda: own.rows(behind)[0][0], "the payloads in the database")
    restart_without_kept_answers(own)
    # The agent may be slower than the time that a request waits for it: then the answer is computed.
    left = list(zip(firsts, bodies, strict=True))
    eventually(lambda: is_repeated((pair := left.pop(0))[0], ask(own, pair[1]).json()), "an answer from the database")
    reused = [{**body, "input_data": record_of(model.sample, 7)} for _, body in left]
    eventually(lambda: ask(own, reused.pop(0)).status_code == 422, "another body to be refused")
    for first, body in left[:3]:
        again = ask(own, body)
        assert again.status_code == 422 or again.json()["predictions"] == first["predictions"]
        assert rows_of(own, body) == 1


def test_without_the_database_it_is_computed_and_logged_once(own: ServingHouse, model: ZooModel) -> None:
    """A database that is down would keep predictions with an id from being answered, or have them counted twice."""
    body = a_body(model)
    first = ask(own, body).json()
    assert rows_of(own, body) == 1
    hidden = own.home / "elsewhere"
    hidden.mkdir()
    own.database.close()
    _move(own, hidden)
    restart_without_kept_answers(own)
    again = eventually(lambda: answer if (answer := ask(own, body)).status_code == 200 else None, "an answer").json()
    assert again["predictions"] == first["predictions"]
    assert "repeated" not in again["metadata"]
    _move_back(own, hidden)
    assert rows_of(own, body) == 1
    for name in ("metadata", "processing_time"):
        again.pop(name)
        first.pop(name)
    assert again == first
