"""Item 3 under load: HTTP processes are killed, the data plane is restarted in order, and its parent is killed."""

import random
import time
from collections.abc import Callable

import psutil

from benchmarks.kills.verdict import Verdict, spread
from benchmarks.stack import is_alive
from benchmarks.under_load.exchange import Fate, Outcome
from benchmarks.under_load.judging import Window, judge_traffic, times_of
from benchmarks.under_load.ledger import answered_ids, judge_ledger, wait_until_shipped
from benchmarks.under_load.plane import fresh_house, replica_folder, serve_telltale
from benchmarks.under_load.telltale import numbered_question
from benchmarks.under_load.traffic import Traffic
from benchmarks.waiting import wait_for
from tests.e2e.data_plane import eventually
from tests.e2e.house import ServingHouse

RATE = 100.0
_TIMEOUT = 30
_COMPUTE = 0.02
_GUARD = 60.0
_GONE_WITHIN = 10.0
_MOST_BETWEEN = 0.5
_NOT_THERE: frozenset[Fate | int] = frozenset({Fate.REFUSED, 503})


def restart_planes(verdict: Verdict, rng: random.Random, times: int) -> None:
    """On a data plane of its own, with two HTTP processes."""
    with fresh_house(api_processes=2) as house:
        restart_on(house, verdict, rng, times)


def restart_on(house: ServingHouse, verdict: Verdict, rng: random.Random, times: int) -> None:
    """Each of the three so many times; in the end each answer is in the database."""
    name = serve_telltale(house, "lasting", model=3, seconds=_COMPUTE, timeout=_TIMEOUT)
    trial = _Trial(house, verdict)
    traffic = Traffic(house.plane.port, lambda number: numbered_question(name, 3, number, _TIMEOUT), RATE)
    with traffic.running():
        traffic.wait_for_more(50)
        for _ in range(times):
            for act in (trial.kill_http_process, trial.restart, trial.kill_parent):
                time.sleep(rng.uniform(0, _MOST_BETWEEN))
                act(rng)
                traffic.wait_for_more(50)
    wait_until_shipped(replica_folder(house))
    judge_traffic(verdict, f"{RATE:.0f} requests/s", traffic, trial.windows)
    trial.report(times)
    after = [each for each in traffic.outcomes if each.fate is Fate.RESET and trial.was_late(each)]
    verdict.figure("sent after a SIGTERM on a connection that was being closed", len(after))
    verdict.figure("answered in", times_of(traffic.outcomes))
    judge_ledger(verdict, house.database, answered_ids(traffic.outcomes))


class _Trial:
    """Ends processes, and notes what that excuses."""

    def __init__(self, house: ServingHouse, verdict: Verdict) -> None:
        self.windows: list[Window] = []
        self._house, self._verdict = house, verdict
        self._http_processes = len(house.plane.apis())
        self._gone: list[float] = []
        self._back: dict[str, list[float]] = {"HTTP process killed": [], "SIGTERM": [], "parent killed": []}

    def kill_http_process(self, rng: random.Random) -> None:
        """Only whoever was connected to that one may notice."""
        plane = self._house.plane
        victim = rng.choice(plane.apis())
        began = time.monotonic()
        victim.suspend()  # so that it takes no further client between our look and its end
        ports = frozenset(each.raddr.port for each in victim.net_connections("tcp") if each.raddr)
        victim.kill()
        eventually(
            lambda: len(plane.apis()) == self._http_processes and victim.pid not in [each.pid for each in plane.apis()],
            "another HTTP process",
        )
        plane.ready()
        self._back["HTTP process killed"].append(time.monotonic() - began)
        self.windows.append(Window("HTTP process killed", began, time.monotonic(), frozenset({Fate.RESET}), ports))

    def restart(self, _rng: random.Random) -> None:
        """In order: what was sent before is answered. Then nobody listens until the next one does.

        A request that meets the closing of its idle connection is reset: HTTP has no way to tell its client in time.
        """
        self._end_of("SIGTERM", self._house.plane.process.terminate, later=frozenset({Fate.RESET}))

    def kill_parent(self, _rng: random.Random) -> None:
        """All of it ends by itself; requests under way are cut off."""
        self._end_of("parent killed", self._house.plane.process.kill, excused=frozenset({Fate.RESET}))

    def was_late(self, outcome: Outcome) -> bool:
        """Whether it was sent to a data plane that had been told to end."""
        return any(each.later and each.explains(outcome) for each in self.windows)

    def report(self, times: int) -> None:
        for what, seconds in self._back.items():
            self._verdict.figure(f"{what} until all is ready again ({times} times)", spread(seconds))
        self._verdict.figure("parent ended until no process of it was left", spread(self._gone))

    def _end_of(
        self,
        name: str,
        end: Callable[[], None],
        *,
        excused: frozenset[Fate | int] = frozenset(),
        later: frozenset[Fate | int] = frozenset(),
    ) -> None:
        old = self._house.plane
        pieces = old.tree()
        began = time.monotonic()
        end()
        old.process.wait(_GUARD)
        self._wait_gone(pieces, name, time.monotonic())
        old.client.close()
        self._house.start().ready()
        self._back[name].append(time.monotonic() - began)
        self.windows.append(Window(name, began, time.monotonic(), _NOT_THERE | excused, later=later))

    def _wait_gone(self, pieces: list[psutil.Process], name: str, died: float) -> None:
        wait_for(lambda: not any(is_alive(each) for each in pieces), "every process to be gone", _GUARD)
        gone = time.monotonic() - died
        self._gone.append(gone)
        self._verdict.require(gone <= _GONE_WITHIN, f"{gone:.1f} s after {name} a process was left")
