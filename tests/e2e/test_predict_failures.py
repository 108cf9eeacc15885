"""Versions and rows that do harm: what is bad about them stays with them."""

import signal
import time

import httpx
import pytest

from tests.e2e.data_plane import eventually
from tests.e2e.house import ServingHouse, Traffic, record_of
from tests.models import PILL, Zoo, ZooModel

GOOD = {"a": 0.5, "b": -0.5}


@pytest.fixture(scope="module")
def champion(house: ServingHouse, zoo: Zoo) -> ZooModel:
    """Served as `champion`: what must not notice anything of the others."""
    model = zoo.get("logistic")
    house.serve(model, "champion")
    return model


@pytest.mark.parametrize("name", ["unpickling-raises", "unpickling-kills", "unpickling-exits", "missing-package"])
def test_a_version_that_cannot_be_loaded_takes_nobody_along(
    house: ServingHouse, zoo: Zoo, champion: ZooModel, name: str
) -> None:
    """A bad upload would end what serves, and again after each restart."""
    version = {"unpickling-raises": "2", "unpickling-kills": "3", "unpickling-exits": "4", "missing-package": "5"}[name]
    with Traffic(house, "champion", {"input_data": record_of(champion.sample)}).running() as traffic:
        traffic.wait_for_more(20)
        house.keep(zoo.get(name).folder, "champion", version)
        house.want("champion", version)
        reason = house.wait_failed("champion", version)
        traffic.wait_for_more(50)
    assert (traffic.statuses, traffic.errors) == ({200}, [])
    assert {body["model_version"] for _, _, body in traffic.answers} == {"1"}
    assert reason
    assert "Traceback" not in reason
    expected = {"unpickling-raises": "no licence found", "missing-package": "no_such_package"}.get(name)
    assert expected is None or expected in reason or expected.replace("_", "-") in reason
    assert len(house.plane.ready()) == 3


def test_a_version_whose_bytes_were_changed_is_not_loaded(house: ServingHouse, zoo: Zoo, champion: ZooModel) -> None:
    """What was checked and what serves would be two different things."""
    digest = house.keep(zoo.get("linear").folder, "tampered", "1")
    artifact = house.artifacts.find(digest)
    assert artifact is not None
    victim = artifact.folder / "model.pkl"
    before = victim.read_bytes()
    damaged = bytearray(before)
    damaged[len(damaged) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(damaged)
    house.want("tampered", "1")
    reason = house.wait_failed("tampered", "1")
    assert "model.pkl" in reason
    assert house.predict("champion", {"input_data": record_of(champion.sample)}).status_code == 200
    victim.write_bytes(before)
    house.want("tampered", "1")
    house.wait_ready("tampered", "1")


def test_a_row_that_kills_its_worker_harms_nobody_else(house: ServingHouse, zoo: Zoo, champion: ZooModel) -> None:
    """One request, sent again and again, would be the end of every model that is served."""
    house.serve(zoo.get("kills"), "deadly")
    pill = {"input_data": {"a": PILL, "b": 0.0}}
    workers = {each["pid"] for each in house.plane.ready()}
    mates = Traffic(house, "deadly", {"input_data": GOOD}, clients=2)
    others = Traffic(house, "champion", {"input_data": record_of(champion.sample)}, clients=2)
    with mates.running(), others.running():
        mates.wait_for_more(20)
        answer = house.predict("deadly", pill)
        mates.wait_for_more(50)
        others.wait_for_more(50)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert (others.statuses, others.errors) == ({200}, [])
    assert (mates.statuses, mates.errors) == ({200}, [])
    after = {each["pid"] for each in house.plane.ready()}
    assert 1 <= len(workers - after) <= 2  # the one it was in, and the one it was tried on again
    again = house.predict("deadly", pill)
    assert again.status_code == 503
    assert {each["pid"] for each in house.plane.ready()} == after, "it was let in again"
    assert house.predict("deadly", {"input_data": GOOD}).status_code == 200


def test_a_worker_that_is_killed_costs_no_request(house: ServingHouse, champion: ZooModel) -> None:
    """Each time the system takes a process away, its users would see errors."""
    victim = house.plane.ready()[0]["pid"]
    with Traffic(house, "champion", {"input_data": record_of(champion.sample)}).running() as traffic:
        traffic.wait_for_more(50)
        next(each for each in house.plane.tree() if each.pid == victim).send_signal(signal.SIGKILL)
        traffic.wait_for_more(200)
        workers = eventually(lambda: _without(house, victim), "another worker in its place")
        traffic.wait_for_more(50)
    assert (traffic.statuses, traffic.errors) == ({200}, [])
    assert len(workers) == 3
    assert {each["pid"] for each in workers}.isdisjoint({victim})


def test_a_hanging_model_leaves_the_others_alone(house: ServingHouse, zoo: Zoo, champion: ZooModel) -> None:
    """One model in an endless loop would take all models out of service."""
    house.serve(zoo.get("sleeps"), "hanging", timeout=1)
    with Traffic(house, "champion", {"input_data": record_of(champion.sample)}, clients=2).running() as traffic:
        traffic.wait_for_more(20)
        began = time.monotonic()
        answer = house.predict("hanging", {"input_data": {"seconds": 60.0, "b": 1.0}})
        assert (answer.status_code, time.monotonic() - began < 1.5) == (504, True)
        traffic.wait_for_more(50)
        back = eventually(
            lambda: house.predict("hanging", {"input_data": {"seconds": 0.0, "b": 1.0}}).status_code == 200,
            "it is back",
        )
    assert back
    assert traffic.errors == []
    # Requests of the champion's that wait behind the hanging one are answered by its successor.
    assert traffic.statuses == {200}


def _without(house: ServingHouse, pid: int) -> list[dict[str, int]] | None:
    try:
        workers = house.plane.get("/health/ready").json()["workers"]
    except (httpx.TransportError, KeyError):
        return None
    whole = [each for each in workers if each["pid"] not in (None, pid)]
    return whole if len(whole) == len(workers) else None


def test_no_secret_place_is_told(house: ServingHouse, zoo: Zoo) -> None:
    """An error would show every client where things lie on the server, and how its code looks."""
    model = zoo.get("raises")
    house.serve(model, "secretive")
    for values in ([PILL], [0.5, PILL]):
        answer = house.predict("secretive", {"input_data": {"a": values, "b": [0.0] * len(values)}})
        assert (answer.status_code, answer.json()["error"]) == (500, "model_error"), answer.text
        assert "it cannot bear that row" in answer.json()["detail"]
        for secret in (str(house.home), str(model.folder.parent), "site-packages", "Traceback", 'File "', ".py"):
            assert secret not in answer.text + str(answer.headers)
