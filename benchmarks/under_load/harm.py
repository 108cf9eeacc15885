"""Item 6 under load: rows and models that do harm. What is bad about them stays with them."""

import random
import tempfile
import time
from pathlib import Path

from benchmarks.kills.verdict import Verdict, spread
from benchmarks.under_load.exchange import Fate, Outcome, Question
from benchmarks.under_load.harmful import (
    HARMFUL,
    HOG_MB,
    PILL,
    save_crashing,
    save_hanging,
    save_hog,
    save_raising,
)
from benchmarks.under_load.judging import judge_outcomes, judge_traffic, times_of
from benchmarks.under_load.plane import fresh_house, serve_saved, serve_telltale, wait_replaced, worker_pids
from benchmarks.under_load.telltale import MOST_B, numbered_question, telltale_question
from benchmarks.under_load.traffic import Traffic, ask_all, tally
from benchmarks.waiting import wait_for
from tests.e2e.house import ServingHouse

RATE = 200.0
BUDGET_MB = 1_000
"""Of each worker; they take some 250 of it before they hold anything large."""
_BATCH = 64
_HANG_TIMEOUT = 1
_LATE = 0.5
"""Seconds beyond its deadline in which a 504 has to come: less than any client would call hanging."""
_GUARD = 60.0


def do_harm(verdict: Verdict, rng: random.Random, times: int) -> None:
    """On a data plane of its own, with two HTTP processes: what one of them lost must not be blamed on the other's."""
    with fresh_house(api_processes=2, memory_budget_mb=BUDGET_MB) as house:
        harm_on(house, verdict, rng, times)


def harm_on(house: ServingHouse, verdict: Verdict, rng: random.Random, times: int) -> None:
    """Each kind of harm so many times, while another model's requests must not notice anything."""
    name = serve_telltale(house, "bystander", model=4)
    trial = _Trial(house, verdict, rng)
    with tempfile.TemporaryDirectory(prefix="switchyard-") as folder:
        serve_saved(house, "raising", save_raising(Path(folder)), batch_size=_BATCH)
        serve_saved(house, "crashing", save_crashing(Path(folder)), batch_size=_BATCH)
        serve_saved(house, "hanging", save_hanging(Path(folder)), timeout=_HANG_TIMEOUT)
        hog = save_hog(Path(folder))
        traffic = Traffic(house.plane.port, lambda number: numbered_question(name, 4, number), RATE)
        with traffic.running():
            traffic.wait_for_more(50)
            for _ in range(times):
                trial.poison_a_batch()
                trial.crash_a_worker()
                trial.hang_a_worker()
            trial.refuse_a_hog(hog)
            traffic.wait_for_more(50)
    judge_traffic(verdict, f"another model at {RATE:.0f} requests/s", traffic)
    verdict.figure("another model answered in", times_of(traffic.outcomes))
    trial.report(times)


class _Trial:
    def __init__(self, house: ServingHouse, verdict: Verdict, rng: random.Random) -> None:
        self._house, self._verdict, self._rng = house, verdict, rng
        self._poisoned: list[Outcome] = []
        self._mates: list[Outcome] = []
        self._late: list[float] = []
        self._back: list[float] = []
        self._batches = 0

    def poison_a_batch(self) -> None:
        """64 rows asked for at once, each by a client of its own; one of them makes the model raise."""
        sums_before = self._batch_sums("raising")
        poisoned, mates = self._one_among("raising", _BATCH)
        self._expect(poisoned, {500}, "a row that makes its model raise")
        judge_outcomes(self._verdict, "beside a row that raises", mates)
        requests, rows = (
            after - before for after, before in zip(self._batch_sums("raising"), sums_before, strict=True)
        )
        self._batches += int(rows > requests)  # some of them did share a call with others

    def crash_a_worker(self) -> None:
        """As before, and the row ends its process: twice, since its question is asked again, alone."""
        before = worker_pids(self._house)
        poisoned, mates = self._one_among("crashing", _BATCH // 4)
        self._expect(poisoned, {503}, "a row that ends its worker")
        judge_outcomes(self._verdict, "beside a row that ends its worker", mates)
        self._complete_again()
        ended = len(before - worker_pids(self._house))
        # A question that has ended two workers is not let in again for a minute.
        self._verdict.require(ended <= 2, f"one row ended {ended} workers")

    def hang_a_worker(self) -> None:
        """Its deadline is kept, its worker replaced."""
        before = worker_pids(self._house)
        outcome = self._ask([self._question("hanging", PILL, _HANG_TIMEOUT)])[0]
        self._expect(outcome, {504}, "a row that hangs")
        self._late.append(outcome.seconds - _HANG_TIMEOUT)
        self._verdict.require(
            outcome.seconds <= _HANG_TIMEOUT + _LATE, f"504 came {outcome.seconds:.2f} s after the question"
        )
        began = time.monotonic()
        wait_for(lambda: len(before - worker_pids(self._house)) == 1, "the hanging worker to be replaced", _GUARD)
        self._back.append(time.monotonic() - began)

    def refuse_a_hog(self, saved: Path) -> None:
        """A version beyond the memory that a worker may take is refused, with both figures in the reason."""
        before = worker_pids(self._house)
        self._house.keep(saved, "hog", "1")
        self._house.want("hog", "1")
        reason = self._house.wait_failed("hog", "1")
        self._verdict.require(str(BUDGET_MB) in reason, f"the hog was refused without the budget named: {reason}")
        # The spare is where it proves itself, and may be ended for what it takes meanwhile.
        ended = len(before - worker_pids(self._house))
        self._verdict.require(ended <= 1, f"a hog that was refused took {ended} workers along")
        self._verdict.figure(f"a model of {HOG_MB} MB where {BUDGET_MB} MB are allowed", "refused")

    def report(self, times: int) -> None:
        statuses = f"{tally(self._poisoned)}"
        self._verdict.figure(f"{times} times each: rows that raise and rows that crash, answered", statuses)
        self._verdict.figure("other rows asked for beside them", tally(self._mates))
        self._verdict.figure("poisoned rows that shared a batch with others", f"{self._batches} of {times}")
        self._verdict.require(self._batches > 0, "no poisoned row ever shared a batch: nothing was shown")
        self._verdict.figure("504 of a hanging model after its deadline", spread(self._late))
        self._verdict.figure("then until its worker was replaced", spread(self._back))

    def _one_among(self, model_id: str, count: int) -> tuple[Outcome, list[Outcome]]:
        """Ask for so many rows at once, one of them the pill; what became of it, and of the others."""
        place = self._rng.randrange(count)
        questions = [
            self._question(model_id, PILL if number == place else self._rng.randrange(PILL)) for number in range(count)
        ]
        outcomes = self._ask(questions)
        poisoned = outcomes.pop(place)
        self._poisoned.append(poisoned)
        self._mates += outcomes
        return poisoned, outcomes

    def _question(self, model_id: str, a: int, deadline: float = 30.0) -> Question:
        # A pill of its own each time: one that has ended two workers is refused without being tried.
        return telltale_question(model_id, HARMFUL, [(a, self._rng.randrange(MOST_B))], deadline=deadline)

    def _ask(self, questions: list[Question]) -> list[Outcome]:
        return ask_all(self._house.plane.port, questions, len(questions))

    def _expect(self, outcome: Outcome, statuses: set[int], what: str) -> None:
        self._verdict.require(
            outcome.fate is Fate.ANSWERED and outcome.status in statuses,
            f"{what}: {outcome.status or outcome.fate} after {outcome.seconds:.1f} s",
        )

    def _complete_again(self) -> None:
        wait_replaced(self._house, set())

    def _batch_sums(self, model_id: str) -> tuple[float, float]:
        """Answers of a model, and the rows of the batches that they were computed in, added up."""
        metric = self._house.plane.metric
        name = "switchyard_prediction_batch_rows"
        return metric(f"{name}_count", model=model_id), metric(f"{name}_sum", model=model_id)
