"""Each field of ModelServingConfig does what its name says, from the next request on."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


def configure(house: ServingHouse, model_id: str, **fields: Any) -> None:
    house.configure(model_id, **fields)
    house.wait_applied()


@pytest.mark.parametrize("size", [1, 4, 64])
def test_batch_size_bounds_what_the_model_takes_at_once(house: ServingHouse, sleepy: str, size: int) -> None:
    """A model that cannot bear large batches would get them; one that needs them would not."""
    configure(house, sleepy, batch_size=size)

    def largest() -> int:
        answers = together(house, sleepy, [nap(0.03) for _ in range(24)])
        assert {each.status_code for each in answers} == {200}
        return max(int(each.json()["metadata"]["batch_rows"]) for each in answers)

    assert largest() <= size
    if size > 1:
        eventually(lambda: min(4, size) <= largest() <= size, "requests that queue to share a batch")


def test_requests_beyond_max_concurrent_are_turned_away(house: ServingHouse, sleepy: str) -> None:
    """A burst would queue until every request of it is too late."""
    configure(house, sleepy, max_concurrent_requests=3)
    answers = together(house, sleepy, [nap(1.0) for _ in range(12)])
    statuses = sorted(each.status_code for each in answers)
    assert statuses == [200] * 3 + [429] * 9
    turned_away = next(each for each in answers if each.status_code == 429)
    assert int(turned_away.headers["retry-after"]) >= 1
    assert (turned_away.json()["error"], turned_away.json()["limit"]) == ("TooManyRequests", 3)
    assert house.predict(sleepy, nap(0.0)).status_code == 200
    configure(house, sleepy)
    assert {each.status_code for each in together(house, sleepy, [nap(0.05) for _ in range(12)])} == {200}


def test_the_timeout_is_kept_to_the_moment(house: ServingHouse, sleepy: str) -> None:
    """A client would wait for a model that hangs."""
    configure(house, sleepy, timeout=1)
    began = time.monotonic()
    answer = house.predict(sleepy, nap(3.0))
    took = time.monotonic() - began
    assert (answer.status_code, answer.json()["error"], answer.json()["timeout"]) == (504, "DeadlineExceeded", 1)
    assert 0.95 < took < 2.9  # not when the model comes back
    configure(house, sleepy)
    assert house.predict(sleepy, nap(1.1)).status_code == 200


def test_a_client_may_want_its_answer_sooner(house: ServingHouse, sleepy: str) -> None:
    """A client that gives up after a second would leave work behind that nobody waits for."""
    configure(house, sleepy)
    began = time.monotonic()
    answer = house.predict(sleepy, nap(2.0), headers={"x-request-timeout": "0.3"})
    assert (answer.status_code, answer.json()["error"]) == (504, "DeadlineExceeded")
    assert 0.25 < time.monotonic() - began < 1.9
    assert house.predict(sleepy, nap(0.1), headers={"x-request-timeout": "5"}).status_code == 200


@pytest.mark.parametrize("count", [0, 7])
def test_warmup_requests_are_made_before_a_version_is_ready(house: ServingHouse, zoo: Zoo, count: int) -> None:
    """The first users of a version would wait for what it does only once."""
    model = zoo.get("boosting-with-gaps")
    name = f"warmed-{count}"
    house.configure(name, warmup_requests=count)
    facts = house.add(model, name, "1")
    assert len(facts["warmup_seconds"]) == count
    assert all(each > 0 for each in facts["warmup_seconds"])


def test_max_rows_bounds_a_request(house: ServingHouse, sleepy: str) -> None:
    """A model's owner could not keep out requests that would hold it up."""
    columns = {"seconds": [0.0] * 5, "b": [1.0] * 5}
    configure(house, sleepy, max_rows=4)
    assert house.predict(sleepy, {"input_data": columns}).status_code == 422
    configure(house, sleepy, max_rows=5)
    assert house.predict(sleepy, {"input_data": columns}).status_code == 200


def test_client_timestamps_are_event_time_only_where_allowed(house: ServingHouse, sleepy: str) -> None:
    """Replayed traffic would count as today's; or any client could write into the past."""
    then = datetime(2013, 4, 1, 12, 30, 15, tzinfo=UTC)
    event_times = {}
    for allowed in (True, False):
        configure(house, sleepy, client_timestamps=allowed)
        given = str(uuid.uuid4())
        user = f"user-{given}"
        assert (
            house.predict(sleepy, nap(0.0, request_id=given, timestamp=then.isoformat(), user_id=user)).status_code
            == 200
        )
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
    configure(house, sleepy, max_rows=2)
    assert time.monotonic() - began < 2
    assert house.predict(sleepy, {"input_data": {"seconds": [0.0] * 3, "b": [1.0] * 3}}).status_code == 422
    configure(house, sleepy)
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
    configure(house, sleepy, timeout=30)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(house.predict, sleepy, nap(1.5))
        eventually(lambda: _under_way(house, sleepy) > 0, "the request under way")
        configure(house, sleepy, timeout=1)
        assert under_way.result().status_code == 200
    configure(house, sleepy)


def _under_way(house: ServingHouse, model_id: str) -> float:
    lines = house.plane.get("/metrics").text.splitlines()
    found = [each for each in lines if "under_way" in each and f'"{model_id}"' in each]
    return sum(float(each.rsplit(" ", 1)[1]) for each in found)
