"""Versions that do harm while they are being loaded, in a real data plane: refused with a reason, and nobody else notices."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.data_plane import eventually
from tests.e2e.house import ServingHouse, Traffic, record_of
from tests.models import Zoo, ZooModel, deadly_beside

_BUDGET_MB = 700


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, zoo: Zoo) -> Iterator[ServingHouse]:
    """A data plane with little time and memory for loads, and a champion."""
    house = ServingHouse(tmp_path_factory.mktemp("strict"), load_timeout=8, memory_budget_mb=_BUDGET_MB)
    try:
        house.serve(zoo.get("logistic"), "champion")
        yield house
    finally:
        house.end()


@pytest.fixture(scope="module")
def champion(zoo: Zoo) -> ZooModel:
    """What must not notice anything of the others."""
    return zoo.get("logistic")


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [
        ("unpickling-hangs", "2", "loading it took longer than 8 s"),
        ("unpickling-hangs-all", "3", "loading it took longer than 8 s"),
        ("unpickling-eats", "4", f"a worker may take {_BUDGET_MB} MB"),
    ],
)
def test_a_version_that_does_not_come_to_an_end_is_refused(
    strict: ServingHouse, zoo: Zoo, champion: ZooModel, name: str, version: str, reason: str
) -> None:
    """One bad upload would stop all promotions for good, or fill the memory until the kernel ends the champion."""
    before = {each["id"]: each["pid"] for each in strict.plane.ready()}
    with Traffic(strict, "champion", {"input_data": record_of(champion.sample)}, clients=1).running() as traffic:
        traffic.wait_for_more(5)
        strict.keep(zoo.get(name).folder, "champion", version)
        strict.want("champion", version)
        assert reason in strict.wait_failed("champion", version)
        strict.add(zoo.get("linear"), f"after-{version}", "1")  # other loads go on
        traffic.wait_for_more(5)
    assert (traffic.statuses, traffic.errors) == ({200}, [])
    after = {each["id"]: each["pid"] for each in strict.plane.ready()}
    assert {worker for worker in before if before[worker] != after[worker]} == {2}  # the spare alone was replaced


def test_a_version_that_has_become_deadly_keeps_no_worker_down(
    strict: ServingHouse, zoo: Zoo, champion: ZooModel, tmp_path: Path
) -> None:
    """After an upgrade of a library nothing would be served any more, because of a version that nobody asks."""
    trigger = tmp_path / "deadly"
    strict.add(deadly_beside(trigger, tmp_path / "model"), "grudge", "1")
    trigger.touch()
    old = {each["pid"] for each in strict.plane.ready()}
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not old & {each["pid"] for each in strict.plane.ready()}, "other workers")
    assert strict.ask("champion", record_of(champion.sample))["model_version"] == "1"
    assert "ended while it was loading" in strict.wait_failed("grudge", "1")
    strict.plane.ready()
    trigger.unlink()
    strict.want("grudge", "1")
    strict.wait_ready("grudge", "1")
