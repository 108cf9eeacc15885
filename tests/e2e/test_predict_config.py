"""Each field of ModelServingConfig does what its name says, from the next request on."""

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.data_plane import eventually
from tests.e2e.house import ServingHouse, together
from tests.models import Zoo


@pytest.fixture(scope="module")
def sleepy(house: ServingHouse, zoo: Zoo) -> str:
    """Takes as many seconds as it is told."""
    return house.serve(zoo.get("sleeps"), "sleepy")


def nap(seconds: float, **more: Any) -> dict[str, Any]:
    """A request that keeps the model busy for so long."""
    return {"input_data": {"seconds": seconds, "b": 1.0}, **more}


@contextmanager
def configured(house: ServingHouse, model_id: str, **fields: Any) -> Iterator[None]:
    """With these fields in force; afterwards, whatever happened, with the defaults: others ask the same model."""
    configure(house, model_id, **fields)
    try:
        yield
    finally:
        configure(house, model_id)


def configure(house: ServingHouse, model_id: str, **fields: Any) -> None:
    house.configure(model_id, **fields)
    house.wait_applied()


@pytest.mark.parametrize("size", [1, 4, 64])
def test_batch_size_bounds_what_the_model_takes_at_once(house: ServingHouse, sleepy: str, size: int) -> None:
    """A model that cannot bear large batches would get them; one that needs them would not."""

    def largest() -> int:
        answers = together(house, sleepy, [nap(0.03) for _ in range(24)])
        assert {each.status_code for each in answers} == {200}
        return max(int(each.json()["metadata"]["batch_rows"]) for each in answers)

    with configured(house, sleepy, batch_size=size):
        assert largest() <= size
        if size > 1:
            eventually(lambda: min(4, size) <= largest() <= size, "requests that queue to share a batch")


def test_requests_beyond_max_concurrent_are_turned_away(house: ServingHouse, sleepy: str) -> None:
    """A burst would queue until every request of it is too late."""
    with configured(house, sleepy, max_concurrent_requests=3), ThreadPoolExecutor(3) as pool:
        under_way = [pool.submit(house.predict, sleepy, nap(2.0)) for _ in range(3)]
        eventually(lambda: _under_way(house, sleepy) == 3, "three requests under way")
        answers = together(house, sleepy, [nap(0.0) for _ in range(9)])
        assert [each.status_code for each in answers] == [429] * 9
        turned_away = answers[0]
        assert int(turned_away.headers["retry-after"]) >= 1
        assert (turned_away.json()["error"], turned_away.json()["limit"]) == ("TooManyRequests", 3)
        assert [each.result().status_code for each in under_way] == [200] * 3
        assert house.predict(sleepy, nap(0.0)).status_code == 200
    assert {each.status_code for each in together(house, sleepy, [nap(0.05) for _ in range(12)])} == {200}


def test_the_timeout_is_kept_to_the_moment(house: ServingHouse, sleepy: str) -> None:
    """A client would wait for a model that hangs."""
    with configured(house, sleepy, timeout=1):
        began = time.monotonic()
        answer = house.predict(sleepy, nap(6.0))
        took = time.monotonic() - began
        assert (answer.status_code, answer.json()["error"], answer.json()["timeout"]) == (504, "DeadlineExceeded", 1)
        assert 0.95 < took < 5
    assert house.predict(sleepy, nap(1.1)).status_code == 200


def test_a_client_may_want_its_answer_sooner(house: ServingHouse, sleepy: str) -> None:
    """A client that gives up after a second would leave work behind that nobody waits for."""
    configure(house, sleepy)
    began = time.monotonic()
    answer = house.predict(sleepy, nap(2.0), headers={"x-request-timeout": "0.3"})
    assert (answer.status_code, answer.json()["error"]) == (504, "DeadlineExceeded")
    assert 0.25 < time.monotonic() - began < 1.5
    assert house.predict(sleepy, nap(0.1), headers={"x-request-timeout": "20"}).status_code == 200


def test_who_shares_an_answer_waits_as_long_as_itself_wants(house: ServingHouse, sleepy: str) -> None:
    """A retry with little time left would wait for the first one's, and a patient one would fail with a hasty one."""
    url = f"http://127.0.0.1:{house.plane.port}/ml/models/{sleepy}/predict"
    hasty = {"x-request-timeout": "0.5"}

    def ask(body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.post(url, json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(1) as other:
        body = nap(3.0, request_id=str(uuid.uuid4()))
        patient = other.submit(ask, body)
        eventually(lambda: _under_way(house, sleepy) > 0, "the patient one under way")
        assert ask(body, hasty).json()["error"] == "DeadlineExceeded"
        assert not patient.done()
        answer = patient.result()
        assert answer.status_code == 200
        assert ask(body).json() == answer.json()
        body = nap(1.0, request_id=str(uuid.uuid4()))
        first = other.submit(ask, body, hasty)
        eventually(lambda: _under_way(house, sleepy) > 0, "the hasty one under way")
        assert ask(body).status_code == 200
        assert first.result().status_code == 504


@pytest.mark.parametrize("count", [0, 7])
def test_warmup_requests_are_made_before_a_version_is_ready(house: ServingHouse, zoo: Zoo, count: int) -> None:
    """The first users of a version would wait for what it does only once."""
    model = zoo.get("boosting-with-gaps")
    name = f"warmed-{count}"
    house.configure(name, warmup_requests=count)
    facts = house.add(model, name, "1")
    assert len(facts["warmup_seconds"]) == count
    assert all(each > 0 for each in facts["warmup_seconds"])


def test_compiled_says_what_was_compared_and_can_be_switched_off(house: ServingHouse, zoo: Zoo) -> None:
    """A model's owner could neither see why an answer was made in another way, nor have it made by scikit-learn."""
    model = zoo.get("columns")
    found = house.add(model, "made-fast", "1")["compilation"]
    assert found["used"], found
    assert found["rows"] >= 100
    assert found["compiled_us_1"] < found["native_us_1"]
    house.configure("left-alone", compiled=False)
    assert house.add(model, "left-alone", "1")["compilation"] is None


def test_max_rows_bounds_a_request(house: ServingHouse, sleepy: str) -> None:
    """A model's owner could not keep out requests that would hold it up."""
    columns = {"seconds": [0.0] * 5, "b": [1.0] * 5}
    with configured(house, sleepy, max_rows=4):
        assert house.predict(sleepy, {"input_data": columns}).status_code == 422
        configure(house, sleepy, max_rows=5)
        assert house.predict(sleepy, {"input_data": columns}).status_code == 200


def test_client_timestamps_are_event_time_only_where_allowed(house: ServingHouse, sleepy: str) -> None:
    """Replayed traffic would count as today's; or any client could write into the past."""
    then = datetime(2013, 4, 1, 12, 30, 15, tzinfo=UTC)
    event_times = {}
    for allowed in (True, False):
        given = str(uuid.uuid4())
        user = f"user-{given}"
        with configured(house, sleepy, client_timestamps=allowed):
            answer = house.predict(sleepy, nap(0.0, request_id=given, timestamp=then.isoformat(), user_id=user))
        assert answer.status_code == 200
        ((event_times[allowed],),) = eventually(
            lambda user=user: house.rows("SELECT event_us FROM prediction WHERE unit = :unit", unit=user),  # type: ignore[misc]
            "the prediction in the log",
        )
    assert event_times[True] == int(then.timestamp() * 1e6)
    assert abs(event_times[False] / 1e6 - time.time()) < 60


def test_a_configuration_changes_without_a_restart(house: ServingHouse, sleepy: str) -> None:
    """Every change would need an hour without traffic."""
    before = {each.pid for each in house.plane.tree()}
    began = time.monotonic()
    with configured(house, sleepy, max_rows=2):
        assert time.monotonic() - began < 5
        assert house.predict(sleepy, {"input_data": {"seconds": [0.0] * 3, "b": [1.0] * 3}}).status_code == 422
    assert {each.pid for each in house.plane.tree()} == before


def test_the_configuration_tells_what_serves(house: ServingHouse, zoo: Zoo) -> None:
    """An operator could not see which version, and which files, a running server answers from."""
    model = zoo.get("linear")
    name = house.serve(model, "told")
    digest = house.keep(zoo.get("multi-output").folder, name, "2")
    house.want(name, "2")
    house.wait_ready(name, "2")
    house.route(name, {"1": 0.25, "2": 0.75})
    house.wait_applied()
    (table,) = house.home.glob("data-plane-*/table.json")
    config = json.loads(table.read_text())["models"][name]["config"]
    assert config["model_version"] == "2"
    folder = Path(config["model_path"])
    assert digest in folder.parts
    assert (folder / "MLmodel").is_file()


def test_a_request_is_served_by_one_configuration(house: ServingHouse, sleepy: str) -> None:
    """A change would apply to half of the processes, or to requests that are under way."""
    with configured(house, sleepy, timeout=30), ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(house.predict, sleepy, nap(3.0))
        eventually(lambda: _under_way(house, sleepy) > 0, "the request under way")
        configure(house, sleepy, timeout=1)
        assert not under_way.done(), "the change came too late to try anything"
        assert under_way.result().status_code == 200


def _under_way(house: ServingHouse, model_id: str) -> float:
    lines = house.plane.get("/metrics").text.splitlines()
    found = [each for each in lines if "under_way" in each and f'"{model_id}"' in each]
    return sum(float(each.rsplit(" ", 1)[1]) for each in found)
