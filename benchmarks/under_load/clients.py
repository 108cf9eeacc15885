"""Item 7 under load: clients that leave, and clients in a hurry. Their places are freed, and no worker pays for them."""

import asyncio
import random
import time
from contextlib import suppress

import uvloop

from benchmarks.kills.verdict import Verdict
from benchmarks.under_load.exchange import Question
from benchmarks.under_load.judging import judge_outcomes, judge_traffic, times_of
from benchmarks.under_load.plane import fresh_house, serve_telltale, worker_pids
from benchmarks.under_load.telltale import numbered_question, predict_path
from benchmarks.under_load.traffic import Traffic, ask_all, tally
from benchmarks.waiting import NotInTime, wait_for
from tests.e2e.house import ServingHouse

RATE = 200.0
_SLOTS = 8
_COMPUTE = 0.3
"""Seconds of a call of the slow model."""
_HURRY = 0.05
_LATE = 0.25
_GUARD = 60.0
_COUNTED_WITHIN = 5.0


def leave_and_hurry(verdict: Verdict, rng: random.Random, times: int) -> None:
    """On a data plane of its own."""
    with fresh_house() as house:
        leave_and_hurry_on(house, verdict, rng, times)
        count_leavers_on(house, verdict, rng, times)


def leave_and_hurry_on(house: ServingHouse, verdict: Verdict, rng: random.Random, times: int) -> None:
    """So many rounds, in each of which as many clients leave, and as many are in a hurry, as there are places."""
    slow = serve_telltale(house, "slow", model=6, seconds=_COMPUTE, batch_size=_SLOTS, max_concurrent_requests=_SLOTS)
    other = serve_telltale(house, "unhurried", model=7)
    workers, restarts = worker_pids(house), house.plane.metric("switchyard_worker_restarts_total")
    late = house.plane.metric("switchyard_late_total")
    traffic = Traffic(house.plane.port, lambda number: numbered_question(other, 7, number), RATE)
    with traffic.running():
        traffic.wait_for_more(50)
        for _ in range(times):
            _leave(house, slow, rng)
            _all_places_free(house, verdict, slow, "after clients had left")
            _hurry(house, verdict, slow)
            _all_places_free(house, verdict, slow, "after clients in a hurry")
        traffic.wait_for_more(50)
    judge_traffic(verdict, f"another model at {RATE:.0f} requests/s", traffic)
    verdict.figure("another model answered in", times_of(traffic.outcomes))
    dropped = house.plane.metric("switchyard_late_total") - late
    verdict.figure(f"clients that waited {_HURRY:g} s, late answers dropped", f"{times * _SLOTS}, {dropped:.0f}")
    restarted = house.plane.metric("switchyard_worker_restarts_total") - restarts
    verdict.require(restarted == 0 and worker_pids(house) == workers, "a worker was ended for its clients' sake")
    verdict.figure("workers ended", f"{restarted:.0f}")


def count_leavers_on(house: ServingHouse, verdict: Verdict, rng: random.Random, times: int) -> None:
    """As many clients leave as there are places, so many times; each is counted."""
    name = serve_telltale(house, "left-behind", model=6, seconds=_COMPUTE, batch_size=_SLOTS)
    before, leavers = _left(house), times * _SLOTS
    for _ in range(times):
        _leave(house, name, rng)
    with suppress(NotInTime):  # it is said below, with the count
        wait_for(lambda: _left(house) - before >= leavers, "clients that left to be counted", _COUNTED_WITHIN)
    counted = _left(house) - before
    verdict.figure("clients that left, counted as such (499)", f"{leavers}, {counted:.0f}")
    verdict.require(counted == leavers, f"{leavers} clients left, {counted:.0f} were counted")


def _leave(house: ServingHouse, model_id: str, rng: random.Random) -> None:
    """As many clients as there are places ask, and hang up before they are answered."""
    questions = [numbered_question(model_id, 6, number) for number in range(_SLOTS)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_ask_and_leave(house.plane.port, questions, rng.uniform(0.01, _COMPUTE / 3)))


async def _ask_and_leave(port: int, questions: list[Question], seconds: float) -> None:
    writers = []
    for each in questions:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(each.encoded())
        writers.append(writer)
    await asyncio.sleep(seconds)
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def _hurry(house: ServingHouse, verdict: Verdict, model_id: str) -> None:
    """As many clients as there are places want an answer sooner than the model can give it."""
    patient = numbered_question(model_id, 6, 0, deadline=_HURRY)
    hurried = Question(
        predict_path(model_id), patient.body, patient.find_fault, _HURRY, (("x-request-timeout", str(_HURRY)),)
    )
    outcomes = ask_all(house.plane.port, [hurried] * _SLOTS, _SLOTS)
    judge_outcomes(verdict, "in a hurry", outcomes, allowed=(504,))
    longest = max(each.seconds for each in outcomes)
    verdict.require(longest <= _HURRY + _LATE, f"a client that waits {_HURRY:g} s was answered after {longest:.2f} s")


def _all_places_free(house: ServingHouse, verdict: Verdict, model_id: str, when: str) -> None:
    """As many as there are places are let in at once, as soon as the model has done what it was at."""
    questions = [numbered_question(model_id, 6, number) for number in range(_SLOTS)]

    def all_let_in() -> bool:
        outcomes = ask_all(house.plane.port, questions, _SLOTS)
        judge_outcomes(verdict, when, outcomes, allowed=(200, 429))
        return all(each.status == 200 for each in outcomes)

    began = time.monotonic()
    try:
        wait_for(all_let_in, f"{_SLOTS} places to be free {when}", _GUARD)
    except NotInTime as error:
        outcomes = ask_all(house.plane.port, questions, _SLOTS)
        verdict.problems.append(f"{error}: {tally(outcomes)}, {time.monotonic() - began:.0f} s later")


def _left(house: ServingHouse) -> float:
    return house.plane.metric("switchyard_http_requests_total", status="499")
