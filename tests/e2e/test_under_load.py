"""The most telling trials of `make chaos`, with counts of a few seconds; see docs/reliability.md."""

import random
from collections.abc import Callable, Iterator

import pytest

from benchmarks.kills.verdict import Verdict
from benchmarks.under_load.clients import count_leavers_on, leave_and_hurry_on
from benchmarks.under_load.harm import BUDGET_MB, harm_on
from benchmarks.under_load.mixed import mix_on
from benchmarks.under_load.restarts import restart_on
from benchmarks.under_load.swaps import swap_on
from benchmarks.under_load.workers import kill_on
from tests.e2e.house import ServingHouse

Trial = Callable[[ServingHouse, Verdict, random.Random, int], None]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingHouse]:
    """A house of its own: things are killed in it."""
    house = ServingHouse(tmp_path_factory.mktemp("under_load"), memory_budget_mb=BUDGET_MB)
    try:
        yield house
    finally:
        house.end()


def try_on(house: ServingHouse, trial: Trial, amount: int) -> None:
    """Fails with what the trial found wrong."""
    verdict = Verdict(0, trial.__name__)
    trial(house, verdict, random.Random(1), amount)
    assert verdict.problems == [], verdict.figures
    assert verdict.figures


def test_swapping_versions_fails_no_request(own: ServingHouse) -> None:
    """Each promotion would cost errors, or answers of one version in the name of another."""
    try_on(own, swap_on, 4)


def test_killed_workers_cost_nobody_an_answer(own: ServingHouse) -> None:
    """Requests would hang, or count as under way for ever until the model is full and refuses everybody."""
    try_on(own, kill_on, 3)


def test_nobody_gets_the_answer_of_another(own: ServingHouse) -> None:
    """The worst of all: wrong answers that look right."""
    try_on(own, mix_on, 1_000)


def test_harm_stays_where_it_is_done(own: ServingHouse) -> None:
    """One bad row or model would be an outage of all models."""
    try_on(own, harm_on, 1)


def test_who_leaves_or_hurries_takes_nothing_away(own: ServingHouse) -> None:
    """Impatient clients would use up a model's places, or have its workers killed."""
    try_on(own, leave_and_hurry_on, 1)


def test_who_leaves_is_counted(own: ServingHouse) -> None:
    """Clients that give up, because it takes too long, would look like clients that were served."""
    try_on(own, count_leavers_on, 1)


def test_restarts_lose_no_answered_prediction(own: ServingHouse) -> None:
    """Each deployment or crash would cost answers to requests that were under way, or their record."""
    try_on(own, restart_on, 1)
