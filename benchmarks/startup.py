"""How long the real stack takes to start and to end, and what it costs while it does nothing. Run by `make bench`.

    python -m benchmarks.startup [--runs N] [--write]

Starts everything through `switchyard up` on an empty data folder, then N times on the same one, and prints the figures.
With --write they go into docs/performance.md. Status 1 when a later start took longer than the target.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import pages
from benchmarks.stack import PARTS, Piece, Stack, fresh_stack
from benchmarks.waiting import NotInTime, interruptible, wait_for

TARGET_SECONDS = 40.0
_PAGE = pages.DOCS / "performance.md"
_ROWS = (*PARTS, "supervisor", "guardian")
_MIB = 2**20
# Idle: below this share of one core for a while. After that long it is measured as it is.
_IDLE_SHARE, _IDLE_WINDOW, _IDLE_GUARD = 0.25, 3.0, 90.0
_CPU_WINDOW = 15.0


@dataclass(frozen=True)
class Cost:
    """What a part and its children take: processes, bytes, and CPU seconds per second while idle."""

    processes: int
    pss: int | None  # the share of memory that it has for itself, None where the system does not tell
    rss: int
    cpu: float


@dataclass(frozen=True)
class Start:
    """One start and its end, in seconds."""

    to_table: float
    to_ready: dict[str, float]  # of each part, from its own start
    to_gone: float


def main(arguments: Sequence[str]) -> int:
    """Measure, print, perhaps write the page; the exit status."""
    options = _options(arguments)
    if options.only and "startup" not in options.only:
        return 0  # one set of arguments for all benchmarks
    runs = 1 if options.quick else max(1, options.runs)
    console = Console()
    with interruptible(), fresh_stack() as stack:
        starts: list[Start] = []
        costs: dict[str, Cost] = {}
        for number in range(runs + 1):
            start, costs = _measure(stack, with_costs=number == runs)
            starts.append(start)
            console.print(f"start {number + 1}: {start.to_table:.1f} s to the table, {start.to_gone:.1f} s to end")
    _show(console, starts, costs)
    if options.write:
        pages.write_section(_PAGE, "startup", _section(starts, costs, arguments))
        console.print(f"written into docs/{_PAGE.name}")
    return int(not _is_met(starts))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="starts after the first one (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one start after the first one")
    parser.add_argument("--only", nargs="+", metavar="PART", help="does nothing unless `startup` is among them")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    return parser.parse_args(arguments)


def _measure(stack: Stack, *, with_costs: bool) -> tuple[Start, dict[str, Cost]]:
    stack.start()
    to_table = stack.wait_ready()
    to_ready = {each.name: each.seconds_to_ready or 0.0 for each in stack.state().parts}
    costs = _costs(stack) if with_costs else {}
    return Start(to_table, to_ready, stack.stop()), costs


def _costs(stack: Stack) -> dict[str, Cost]:
    """Of each part with its children, once the stack has nothing to do."""
    _let_it_settle(stack)
    cpu = _cpu_shares(stack, _CPU_WINDOW)
    found: dict[str, list[Any]] = defaultdict(list)
    for piece in stack.processes():
        with suppress(psutil.Error):  # It has ended meanwhile.
            found[piece.part].append(piece.process.memory_full_info())
    return {
        part: Cost(
            processes=len(infos),
            pss=sum(each.pss for each in infos) if all(hasattr(each, "pss") for each in infos) else None,
            rss=sum(each.rss for each in infos),
            cpu=cpu.get(part, 0.0),
        )
        for part, infos in found.items()
    }


def _let_it_settle(stack: Stack) -> None:
    """Return when it is idle; a stack that never is, is measured as it is, and the figure shows it."""

    def is_idle() -> bool:
        return sum(_cpu_shares(stack, _IDLE_WINDOW).values()) < _IDLE_SHARE

    try:
        wait_for(is_idle, "the stack to be idle", _IDLE_GUARD)
    except NotInTime as never:
        print(f"still busy: {never}", file=sys.stderr)


def _cpu_shares(stack: Stack, seconds: float) -> dict[str, float]:
    """CPU seconds per second of each part over a window of that length; 1 is one core."""
    before: dict[Piece, float] = {}
    for piece in stack.processes():
        with suppress(psutil.Error):
            before[piece] = _cpu_seconds(piece.process)
    began = time.monotonic()
    time.sleep(seconds)  # the window
    window = time.monotonic() - began
    shares: dict[str, float] = defaultdict(float)
    for piece, seconds_before in before.items():
        with suppress(psutil.Error):  # It has ended; its parent counts it.
            shares[piece.part] += (_cpu_seconds(piece.process) - seconds_before) / window
    return dict(shares)


def _cpu_seconds(process: psutil.Process) -> float:
    """Its own and those of children that came and went."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _is_met(starts: Sequence[Start]) -> bool:
    return max(each.to_table for each in starts[1:]) < TARGET_SECONDS


def _start_rows(starts: Sequence[Start]) -> list[list[str]]:
    """What, first start, and minimum, median and maximum of the later ones."""
    first, later = starts[0], starts[1:]

    def row(title: str, one: float, others: Sequence[float]) -> list[str]:
        figures = (one, min(others), statistics.median(others), max(others))
        return [title, *(f"{each:.1f}" for each in figures)]

    return [
        row("command to table, everything ready", first.to_table, [each.to_table for each in later]),
        *(
            row(f"{part}, from its own start", first.to_ready[part], [each.to_ready[part] for each in later])
            for part in PARTS
        ),
        row("SIGTERM to everything gone", first.to_gone, [each.to_gone for each in later]),
    ]


def _cost_rows(costs: dict[str, Cost]) -> list[list[str]]:
    rows = [[part, *_cells(costs[part])] for part in _ROWS if part in costs]
    pss = [each.pss for each in costs.values() if each.pss is not None]
    total = Cost(
        processes=sum(each.processes for each in costs.values()),
        pss=sum(pss) if len(pss) == len(costs) else None,
        rss=sum(each.rss for each in costs.values()),
        cpu=sum(each.cpu for each in costs.values()),
    )
    return [*rows, ["all", *_cells(total)]]


def _cells(cost: Cost) -> list[str]:
    pss = "-" if cost.pss is None else f"{cost.pss / _MIB:.0f}"
    return [str(cost.processes), pss, f"{cost.rss / _MIB:.0f}", f"{cost.cpu * 100:.1f}"]


_START_HEAD = ("seconds", "first start", "later: min", "median", "max")
_COST_HEAD = ("part, with its children", "processes", "PSS, MiB", "RSS, MiB", "idle CPU, % of a core")


def _show(console: Console, starts: Sequence[Start], costs: dict[str, Cost]) -> None:
    for head, rows in ((_START_HEAD, _start_rows(starts)), (_COST_HEAD, _cost_rows(costs))):
        shown = Table(*head, box=None, pad_edge=False, header_style="bold")
        for column in shown.columns[1:]:
            column.justify = "right"
        for cells in rows:
            shown.add_row(*cells)
        console.print(shown, "", sep="\n")
    console.print(_target(starts))


def _target(starts: Sequence[Start]) -> str:
    slowest = max(each.to_table for each in starts[1:])
    verdict = "met" if _is_met(starts) else "missed"
    return f"Target: a second start under {TARGET_SECONDS:.0f} s on 2 cores. Slowest here: {slowest:.1f} s, {verdict}."


def _section(starts: Sequence[Start], costs: dict[str, Cost], arguments: Sequence[str]) -> str:
    return "\n\n".join(
        (
            pages.measured_on("benchmarks.startup", arguments),
            "The first start is on an empty data folder: it creates the databases. Later ones, on the same folder: "
            f"{len(starts) - 1}.",
            pages.table(_START_HEAD, _start_rows(starts)),
            _target(starts),
            "Idle: after the last start, with no model registered and no traffic. PSS counts memory that processes "
            "share in equal parts, so that it adds up; RSS counts it for each of them. CPU over "
            f"{_CPU_WINDOW:.0f} s.",
            pages.table(_COST_HEAD, _cost_rows(costs)),
        )
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
