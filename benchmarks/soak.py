"""Half of the load that the data plane can bear, for a long time: does any process grow, does any request fail?

    python -m benchmarks.soak [--minutes N] [--write]

Run by `make soak`, by hand: it takes 30 minutes. Status 1 when a request failed or a process was started again.
With --write the figures go into docs/reliability.md.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
import psutil
from rich.console import Console

from benchmarks import pages
from benchmarks.serving.load import OpenLoop, run_closed, run_open
from benchmarks.serving.models import logistic_regression
from benchmarks.serving.outcome import Load, Question, Target
from benchmarks.under_load.ledger import wait_until_shipped
from benchmarks.under_load.plane import fresh_house, replica_folder, serve_saved
from benchmarks.under_load.telltale import predict_path
from benchmarks.waiting import interruptible
from serving.spool import spool_state
from tests.e2e.house import ServingHouse

_PAGE = pages.DOCS / "reliability.md"
_CONNECTIONS = 32
_SEARCH_SECONDS = 5.0
_SPAN_SECONDS = 10.0
_SETTLING = 0.2
"""Share of the time that counts as warming up, and not for the slope: pools fill, allocators grow to their size."""
_MB = 2**20
_HEAD = ["process", "MB after the warm-up", "MB in the end", "MB per hour"]


@dataclass
class Soak:
    """What was seen, span after span."""

    rate: float  # requests a second that were sent
    loads: list[Load] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)  # seconds since the beginning
    memory: dict[str, list[float]] = field(default_factory=dict)  # process -> MB of its own (USS) at each moment
    restarts: float = 0.0
    waiting: int = 0  # bytes of the log that waited to be stored, at most
    drained: float = 0.0  # seconds from the last request until none did

    @property
    def errors(self) -> Counter[str]:
        """What went wrong -> how often."""
        return sum((Counter(each.errors) for each in self.loads), Counter())

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.errors and not self.restarts

    def growth(self, process: str) -> tuple[float, float, float]:
        """MB after the warm-up and in the end, and the slope of the line between them, in MB per hour."""
        held = self.memory[process]
        first = min(int(len(held) * _SETTLING), len(held) - 2)
        slope = np.polyfit(self.moments[first:], held[first:], 1)[0] * 3600
        return held[first], held[-1], float(slope)


def main(arguments: Sequence[str]) -> int:
    """Soak, print and perhaps write what was seen; the exit status."""
    options = _options(arguments)
    console = Console(soft_wrap=True, highlight=False)
    with interruptible():
        soak = soak_for(options.minutes * 60)
    section = _section(soak, options.minutes)
    console.print(section, markup=False)
    if options.write:
        pages.write_section(_PAGE, "soak", section)
        console.print(f"written into docs/{_PAGE.name}")
    return int(not soak.passed)


def soak_for(seconds: float) -> Soak:
    """A logistic regression on 30 columns, asked by a Poisson process on 32 connections."""
    model = logistic_regression()
    with fresh_house() as house:
        serve_saved(house, model.name, model.saved(1))
        path = predict_path(model.name)
        asked = [orjson.dumps({"input_data": each}) for each in model.records]
        target = Target(house.plane.port, tuple(Question(path, body, at) for at, body in enumerate(asked)))
        soak = Soak(run_closed(target, _CONNECTIONS, _SEARCH_SECONDS).rate / 2)
        _ask(house, target, soak, seconds)
        ended = time.monotonic()
        wait_until_shipped(replica_folder(house))
        soak.drained = time.monotonic() - ended
        soak.restarts = sum(
            house.plane.metric(f"switchyard_{each}_restarts_total") for each in ("worker", "api", "helper")
        )
    return soak


def _ask(house: ServingHouse, target: Target, soak: Soak, seconds: float) -> None:
    processes = _processes(house)
    soak.memory = {name: [] for name in processes}
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        arrivals = OpenLoop(soak.rate, seed=len(soak.loads))
        soak.loads.append(run_open(target, _CONNECTIONS, _SPAN_SECONDS, arrivals))
        soak.moments.append(time.monotonic() - began)
        soak.waiting = max(soak.waiting, spool_state(replica_folder(house) / "spool").waiting_bytes)
        for name, each in processes.items():
            soak.memory[name].append(each.memory_full_info().uss / _MB)


def _processes(house: ServingHouse) -> Mapping[str, psutil.Process]:
    """Every process of the data plane, by what it does."""
    workers = {each["pid"]: f"worker {each['id']}" for each in house.plane.ready()}
    fork_server = house.plane.fork_server()
    found = {"parent": psutil.Process(house.plane.process.pid), "fork server": fork_server}
    found |= {f"HTTP process {number}": each for number, each in enumerate(house.plane.apis())}
    helpers = [each for each in fork_server.children() if each.pid not in workers]
    found |= {workers[each.pid]: each for each in fork_server.children() if each.pid in workers}
    return found | {f"agent or shipper {number}": each for number, each in enumerate(helpers)}


def _section(soak: Soak, minutes: float) -> str:
    answered = sum(each.answered for each in soak.loads)
    errors = ", ".join(f"{count} x {what}" for what, count in sorted(soak.errors.items())) or "none"
    p99 = [each.p99 * 1000 for each in soak.loads]
    figures = [
        ["requests answered, at requests/s (half of the most)", f"{answered}, {soak.rate:.0f}"],
        ["errors", errors],
        ["processes started again", f"{soak.restarts:.0f}"],
        ["p50 over all, p99 of the median and of the worst ten seconds",
         f"{np.median([each.p50 for each in soak.loads]) * 1000:.1f}, {np.median(p99):.1f}, {max(p99):.1f} ms"],
        ["log waiting to be stored at most, stored after the end", f"{soak.waiting / _MB:.1f} MB, {soak.drained:.1f} s"],
    ]  # fmt: skip
    rows = [[name, *(f"{value:.1f}" for value in soak.growth(name))] for name in sorted(soak.memory)]
    return "\n\n".join(
        [
            pages.measured_on("benchmarks.soak", ["--minutes", f"{minutes:g}"]),
            pages.table(["what", "figure"], figures),
            "Memory of each process's own (USS):",
            pages.table(_HEAD, rows),
        ]
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/reliability.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
