"""Item 1 under load: traffic is moved to and fro between two versions, each loaded anew before it gets any."""

import random
import time
from functools import partial

from benchmarks.kills.verdict import Verdict, spread
from benchmarks.under_load.judging import judge_traffic, times_of
from benchmarks.under_load.plane import fresh_house, serve_telltale
from benchmarks.under_load.telltale import numbered_question
from benchmarks.under_load.traffic import Traffic
from benchmarks.waiting import wait_for
from tests.e2e.house import ServingHouse

RATE = 300.0
_GUARD = 60.0
_MOST_BETWEEN = 0.3


def swap_versions(verdict: Verdict, rng: random.Random, swaps: int) -> None:
    """On a data plane of its own."""
    with fresh_house() as house:
        swap_on(house, verdict, rng, swaps)


def swap_on(house: ServingHouse, verdict: Verdict, rng: random.Random, swaps: int) -> None:
    """Every answer must equal that of the version it names, and each swap must be seen in the answers."""
    name = serve_telltale(house, "swapped", model=1, versions=2)
    traffic = Traffic(house.plane.port, lambda number: numbered_question(name, 1, number), RATE)
    took = []
    with traffic.running():
        traffic.wait_for_more(50)
        for number in range(swaps):
            version = "12"[(number + 1) % 2]
            house.want(name, version)
            house.wait_ready(name, version)
            house.route(name, {version: 1.0})
            written = time.monotonic()
            wait_for(partial(_only, traffic, version, written), f"answers of version {version} alone", _GUARD)
            took.append(time.monotonic() - written)
            time.sleep(rng.uniform(0, _MOST_BETWEEN))
    judge_traffic(verdict, f"{RATE:.0f} requests/s", traffic)
    by_version = [sum(1 for each in traffic.outcomes if each.version == version) for version in "12"]
    verdict.figure("swaps, answers of each version", f"{swaps}, {by_version[0]} and {by_version[1]}")
    verdict.figure("route written until only the new version answers", spread(took))
    verdict.figure("answered in", times_of(traffic.outcomes))


def _only(traffic: Traffic, version: str, since: float) -> bool:
    """Whether the last ten answers are the version's, to requests made since then."""
    last = traffic.outcomes[-10:]
    return len(last) == 10 and all(each.version == version and each.began >= since for each in last)
