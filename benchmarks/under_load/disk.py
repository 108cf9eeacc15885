"""Item 5 under load: the disk of the spool is full. Predictions go on; what is lost is counted, and said aloud."""

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.kills.verdict import Verdict
from benchmarks.under_load.judging import judge_traffic, times_of
from benchmarks.under_load.ledger import answered_ids, judge_ledger, missing_of, wait_until_shipped
from benchmarks.under_load.plane import replica_folder, serve_telltale
from benchmarks.under_load.telltale import numbered_question
from benchmarks.under_load.traffic import Traffic
from benchmarks.waiting import wait_for
from tests.e2e.house import ServingHouse
from tests.processes import free_port

RATE = 200.0
_DISK_MB = 16
_GUARD = 60.0
_ALARM = "records of the prediction log were dropped"
_EVERY = 0.05
_BLOCK = bytes(1 << 16)


def fill_the_disk(verdict: Verdict, _rng: random.Random, seconds: int) -> None:
    """On a data plane whose spool lies on a small disk in memory, which stays full for so long."""
    with tempfile.TemporaryDirectory(prefix="switchyard-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        room = Path(folder) / "home" / f"data-plane-{port}"
        room.mkdir(parents=True)
        refused = _mount(room)
        if refused:
            verdict.skip(f"a disk of its own cannot be mounted here: {refused}")
            return
        try:
            house = ServingHouse(Path(folder), data_plane_port=port)
            try:
                _fill_on(house, verdict, seconds)
            finally:
                house.end()
        finally:
            subprocess.run(["umount", "--lazy", str(room)], check=False)


def _fill_on(house: ServingHouse, verdict: Verdict, seconds: int) -> None:
    name = serve_telltale(house, "recorded", model=5, versions=2)
    traffic = Traffic(house.plane.port, lambda number: numbered_question(name, 5, number), RATE)
    with traffic.running():
        traffic.wait_for_more(100)
        with _full(replica_folder(house)) as keep_full:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                keep_full()
                time.sleep(_EVERY)
            wait_for(lambda: keep_full() or _dropped(house) > 0, "lost predictions to be counted", _GUARD)
            # Routes are saved there too, so that a restart knows them; that they cannot be must not keep them back.
            house.route(name, {"2": 1.0})
            wait_for(lambda: traffic.outcomes[-1].version == "2", "another version while the disk is full", _GUARD)
        freed = len(traffic.outcomes)
        traffic.wait_for_more(200)
    wait_until_shipped(replica_folder(house))
    judge_traffic(verdict, f"{RATE:.0f} requests/s", traffic)
    verdict.figure("answered in", times_of(traffic.outcomes))
    dropped = int(_dropped(house))
    verdict.figure(f"predictions lost in {seconds} s with a full disk, as counted", dropped)
    judge_ledger(verdict, house.database, answered_ids(traffic.outcomes), lost_may_be=dropped)
    later = answered_ids(traffic.outcomes[freed + int(RATE) // 2 :])
    lost_later = missing_of(house.database, later)
    verdict.require(lost_later == 0, f"{lost_later} predictions were lost when the disk had room again")
    said = [line for line in house.plane.logged() if _ALARM in line["event"] and line["level"] == "error"]
    verdict.require(bool(said), "the log does not say that predictions were lost")
    verdict.figure("said so in the log", f"{len(said)} lines")


def _dropped(house: ServingHouse) -> float:
    return house.plane.metric("switchyard_predictions_dropped_total")


def _mount(room: Path) -> str:
    """Put a small disk in memory there; why that cannot be, or nothing."""
    if os.geteuid() != 0:
        return "that takes root"
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(room)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        return str(problem)
    return "" if ran.returncode == 0 else ran.stderr.strip()


@contextmanager
def _full(room: Path) -> Iterator[Callable[[], bool]]:
    """The disk is full inside the block; what is given fills it up again, for the shipper makes room."""
    ballast = room / "ballast"
    with ballast.open("wb", buffering=0) as file:

        def fill() -> bool:
            for size in (len(_BLOCK), 4096, 1):
                try:
                    while file.write(_BLOCK[:size]) == size:
                        pass
                except OSError:
                    continue
            return False

        fill()
        yield fill
    ballast.unlink()
