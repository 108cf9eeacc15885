"""Item 2 under load: workers are killed. Every request is answered by its deadline, and nothing of them is left over."""

import random
import time
from contextlib import suppress

import psutil

from benchmarks.kills.verdict import Verdict, spread
from benchmarks.under_load.judging import judge_traffic, times_of
from benchmarks.under_load.plane import fresh_house, serve_telltale, wait_replaced, worker_pids
from benchmarks.under_load.telltale import numbered_question
from benchmarks.under_load.traffic import Traffic, ask_all, tally
from benchmarks.waiting import NotInTime, wait_for
from tests.e2e.house import ServingHouse

RATE = 300.0
_TIMEOUT = 5
_COMPUTE = 0.02
"""Seconds of a call of the model: so that some requests are under way at any moment."""
_CLOSED_WITHIN = 5.0
_MOST_BETWEEN = 0.5


def kill_workers(verdict: Verdict, rng: random.Random, kills: int) -> None:
    """On a data plane of its own."""
    with fresh_house() as house:
        kill_on(house, verdict, rng, kills)


def kill_on(house: ServingHouse, verdict: Verdict, rng: random.Random, kills: int) -> None:
    """One worker after the other, the spare too, at random moments."""
    name = serve_telltale(house, "kept-up", model=2, seconds=_COMPUTE, timeout=_TIMEOUT)
    before = worker_pids(house)
    lanes = _lanes(house)
    restarts = house.plane.metric("switchyard_worker_restarts_total")
    traffic = Traffic(house.plane.port, lambda number: numbered_question(name, 2, number, _TIMEOUT), RATE)
    back = []
    with traffic.running():
        traffic.wait_for_more(50)
        for _ in range(kills):
            victim = rng.choice(sorted(worker_pids(house)))
            time.sleep(rng.uniform(0, _MOST_BETWEEN))
            psutil.Process(victim).kill()
            back.append(wait_replaced(house, {victim}))
    # 503 is an answer: the question may be asked again. An answer later than its deadline is none.
    judge_traffic(verdict, f"{RATE:.0f} requests/s", traffic, allowed=(200, 503))
    restarted = house.plane.metric("switchyard_worker_restarts_total") - restarts
    verdict.require(restarted == kills, f"{kills} workers were killed, {restarted:.0f} were started again")
    verdict.figure("workers killed, started again", f"{kills}, {restarted:.0f}")
    verdict.figure("killed until all workers answer again", spread(back))
    verdict.figure("asked again because of it", f"{house.plane.metric('switchyard_retried_total'):.0f}")
    verdict.figure("answered in", times_of(traffic.outcomes))
    _judge_leftovers(house, verdict, name, lanes)
    verdict.require(len(worker_pids(house)) == len(before), "there are fewer workers than before")


def _judge_leftovers(house: ServingHouse, verdict: Verdict, name: str, lanes: int) -> None:
    """No call is under way in any table, and no connection to a worker that ended is left."""
    outcomes = ask_all(house.plane.port, [numbered_question(name, 2, 0)], 1)
    verdict.require(outcomes[0].status == 200, f"one more request: {tally(outcomes)}")

    def under_way() -> float:
        return house.plane.metric("switchyard_requests_under_way", model=name)

    with suppress(NotInTime):  # it is said twice a second, and below with the count
        wait_for(lambda: under_way() == 0, "nothing under way", _CLOSED_WITHIN)
    left_over = under_way()
    verdict.require(left_over == 0, f"{left_over:.0f} requests count as under way for ever")
    with suppress(NotInTime):  # it is said below, with the count
        wait_for(lambda: _lanes(house) <= lanes, "closed connections", _CLOSED_WITHIN)
    left = _lanes(house) - lanes
    verdict.require(left <= 0, f"the HTTP process holds {left} connections to workers more than before")
    verdict.figure("under way in the end, connections to workers more than before", f"{left_over:.0f}, {left}")


def _lanes(house: ServingHouse) -> int:
    return sum(len(each.net_connections("unix")) for each in house.plane.apis())
