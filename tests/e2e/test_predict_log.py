"""The prediction log and the ids it is kept by: each predicted row once, whatever is killed or taken away."""

import shutil
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.e2e.data_plane import eventually
from tests.e2e.house import ServingHouse, Traffic, columns_of, record_of, together
from tests.models import Zoo, ZooModel


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, zoo: Zoo) -> Iterator[ServingHouse]:
    """A house of its own: things are killed and taken away in it."""
    house = ServingHouse(tmp_path_factory.mktemp("own"))
    try:
        house.serve(zoo.get("linear"), "linear")
        house.serve(zoo.get("sleeps"), "sleepy")
        yield house
    finally:
        house.end()


@pytest.fixture(scope="module")
def linear(zoo: Zoo) -> ZooModel:
    """Served as `linear` in a house of its own."""
    return zoo.get("linear")


def ids_in_the_log(house: ServingHouse, model_id: str = "linear") -> list[tuple[bytes, int]]:
    found = house.rows("SELECT id, row FROM prediction WHERE model_id = :model", model=model_id)
    return [(bytes(each.id), each.row) for each in found]


def arrived(house: ServingHouse, expected: set[tuple[bytes, int]], model_id: str = "linear") -> None:
    """Returns when the log holds all of these, fails when it holds one twice."""

    def whole() -> bool:
        found = ids_in_the_log(house, model_id)
        assert len(found) == len(set(found))
        return expected <= set(found)

    eventually(whole, f"{len(expected)} rows in the log")


def answered_rows(traffic: Traffic) -> set[tuple[bytes, int]]:
    """The rows that clients have an answer to."""
    return {
        (uuid.UUID(body["request_id"]).bytes, row)
        for _, status, body in traffic.answers
        if status == 200
        for row in range(len(body["predictions"]))
    }


def rollups_agree(house: ServingHouse) -> None:
    """Requests and rows in every resolution are those of the log itself."""
    ((requests, rows),) = house.rows("SELECT count(DISTINCT id), count(*) FROM prediction WHERE model_id = 'linear'")
    for resolution, counted, carried in house.rows(
        "SELECT resolution, sum(n), sum(rows) FROM rollup WHERE model_id = 'linear' GROUP BY resolution"
    ):
        assert (resolution, int(counted), int(carried)) == (resolution, requests, rows)


def test_each_predicted_row_stands_in_the_log_once(own: ServingHouse, linear: ZooModel) -> None:
    """Usage, quality and experiments would count predictions that nobody made, or miss some."""
    rows = linear.sample.head(7)
    expected: set[tuple[bytes, int]] = set()
    for size in (1, 3, 7):
        body = own.ask("linear", columns_of(rows.head(size)), user_id="grace")
        expected |= {(uuid.UUID(body["request_id"]).bytes, row) for row in range(size)}
    arrived(own, expected)
    found = own.rows(
        "SELECT id, row, version, role, unit, status, value, latency_us, arrived_us, event_us FROM prediction WHERE unit = 'grace'"
    )
    assert {(bytes(each.id), each.row) for each in found} == expected
    assert {(each.version, each.role, each.status) for each in found} == {("1", "answer", 200)}
    values = [each["value"] for each in body["predictions"]]
    logged = {each.row: each.value for each in found if bytes(each.id) == uuid.UUID(body["request_id"]).bytes}
    assert [logged[row] for row in range(7)] == pytest.approx(values)
    assert all(0 < each.latency_us < 5e6 and abs(each.arrived_us / 1e6 - time.time()) < 60 for each in found)
    rollups_agree(own)


def test_a_question_by_version_is_no_usage(own: ServingHouse, linear: ZooModel) -> None:
    """Trying a candidate would move the figures that decide about it."""
    inputs = [
        {"name": name, "shape": [1], "datatype": "FP64", "data": [value]}
        for name, value in record_of(linear.sample).items()
    ]
    given = str(uuid.uuid4())
    answer = own.plane.client.post("/v2/models/linear/versions/1/infer", json={"id": given, "inputs": inputs})
    assert answer.status_code == 200, answer.text
    eventually(lambda: own.rows("SELECT 1 FROM prediction WHERE role = 'probe'"), "the probe in the log")


def test_the_same_request_again_gets_the_same_answer(own: ServingHouse, linear: ZooModel) -> None:
    """A client that retries after a lost answer would be counted twice, and might be told something else."""
    given = str(uuid.uuid4())
    body = {"input_data": record_of(linear.sample), "request_id": given, "user_id": given}
    answers = [own.predict("linear", body) for _ in range(3)]
    assert {each.status_code for each in answers} == {200}
    assert len({each.content for each in answers}) == 1
    eventually(lambda: own.rows("SELECT 1 FROM prediction WHERE unit = :unit", unit=given), "it in the log")
    marker = own.ask("linear", record_of(linear.sample))["request_id"]
    arrived(own, {(uuid.UUID(marker).bytes, 0)})
    assert len(own.rows("SELECT 1 FROM prediction WHERE unit = :unit", unit=given)) == 1


def test_the_same_id_for_another_question_is_refused(own: ServingHouse, linear: ZooModel) -> None:
    """A client's mistake would get it the answer to a question it did not ask."""
    given = str(uuid.uuid4())
    first = {"input_data": record_of(linear.sample), "request_id": given}
    assert own.predict("linear", first).status_code == 200
    answer = own.predict("linear", {**first, "input_data": record_of(linear.sample, 1)})
    assert (answer.status_code, answer.json()["error"]) == (422, "RequestIdReused")
    assert given in answer.json()["detail"]
    assert own.predict("linear", first).status_code == 200


def test_concurrent_duplicates_are_computed_once(own: ServingHouse) -> None:
    """An impatient client's retries would each take the model's time."""
    given = str(uuid.uuid4())
    body = {"input_data": {"seconds": 0.4, "b": 1.0}, "request_id": given, "user_id": given}
    answers = together(own, "sleepy", [body] * 6)
    assert {each.status_code for each in answers} == {200}
    assert len({each.content for each in answers}) == 1
    marker = own.ask("sleepy", {"seconds": 0.0, "b": 1.0})["request_id"]
    arrived(own, {(uuid.UUID(marker).bytes, 0)}, "sleepy")
    assert len(own.rows("SELECT 1 FROM prediction WHERE unit = :unit", unit=given)) == 1


def test_a_duplicate_of_what_failed_is_asked_anew(own: ServingHouse) -> None:
    """A retry would be told of a failure that has passed."""
    given = str(uuid.uuid4())
    body = {"input_data": {"seconds": 0.5, "b": 1.0}, "request_id": given}
    assert own.predict("sleepy", body, headers={"x-request-timeout": "0.1"}).status_code == 504
    assert own.predict("sleepy", body).status_code == 200


def test_killing_an_http_process_loses_no_answered_prediction(own: ServingHouse, linear: ZooModel) -> None:
    """What a client was told would not be known to us, and so its outcome could not be joined to it."""
    with Traffic(own, "linear", {"input_data": columns_of(linear.sample.head(3))}).running() as traffic:
        for _ in range(2):
            traffic.wait_for_more(150)
            (api,) = eventually(lambda: own.plane.apis() or None, "an HTTP process")
            api.kill()
            traffic.wait_for_more(50)
    assert traffic.statuses == {200}
    arrived(own, answered_rows(traffic))
    rollups_agree(own)


def test_killing_the_shipper_repeats_and_loses_nothing(own: ServingHouse, linear: ZooModel) -> None:
    """Figures would jump each time a process is restarted."""
    with Traffic(own, "linear", {"input_data": columns_of(linear.sample.head(3))}).running() as traffic:
        for _ in range(4):
            traffic.wait_for_more(100)
            shipper(own).kill()
            time.sleep(0.05)  # each at another moment of its work
    assert (traffic.statuses, traffic.errors) == ({200}, [])
    arrived(own, answered_rows(traffic))
    rollups_agree(own)


def test_predictions_go_on_without_the_database(own: ServingHouse, linear: ZooModel) -> None:
    """A database that is down for an hour would be an hour without predictions, or without their record."""
    hidden = own.home / "elsewhere"
    hidden.mkdir()
    record = record_of(linear.sample)
    expected: set[tuple[bytes, int]] = set()

    def ask(times: int) -> None:
        for _ in range(times):
            expected.add((uuid.UUID(own.ask("linear", record)["request_id"]).bytes, 0))

    own.database.close()
    _move(own, hidden)
    ask(20)
    own.plane.end()
    own.start()
    eventually(lambda: own.predict("linear", {"input_data": record}).status_code == 200, "predictions after a restart")
    ask(20)
    _move_back(own, hidden)
    arrived(own, expected)
    rollups_agree(own)


def shipper(house: ServingHouse) -> psutil.Process:
    """The process that brings the log into the database: a helper that does not listen, as the agent does."""

    def look() -> psutil.Process | None:
        workers = {each["pid"] for each in house.plane.ready()}
        helpers = [each for each in house.plane.fork_server().children() if each.pid not in workers]
        found = [each for each in helpers if not _listens(each)]
        return found[0] if len(helpers) == 2 and len(found) == 1 else None

    return eventually(look, "the shipper")


def _listens(process: psutil.Process) -> bool:
    return any("-agent" in str(each.laddr) for each in process.net_connections("unix"))


def _move(house: ServingHouse, to: Any) -> None:
    for suffix in ("", "-wal", "-shm"):
        file = house.database_file.with_name(house.database_file.name + suffix)
        if file.exists():
            shutil.move(file, to / file.name)


def _move_back(house: ServingHouse, hidden: Any) -> None:
    for file in hidden.iterdir():
        shutil.move(file, house.home / file.name)
