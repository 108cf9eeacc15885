"""Reliability by killing real processes: what is lost, what is left over, how soon it is back. Run by `make chaos`.

    python -m benchmarks.chaos [--seed N] [--item NAME_OR_NUMBER ...] [--full] [--write]

Prints PASS, FAIL or SKIP with figures for each item; status 1 when one failed. Without --full the counts are those
that fit into 15 minutes on 2 cores. With --write the figures go into docs/reliability.md. A seed repeats the order and
the moments of the kills, not how the system lies under them.
"""

import argparse
import random
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from benchmarks import pages
from benchmarks.kills.artifacts import kill_puts
from benchmarks.kills.parts import kill_parts
from benchmarks.kills.routes import kill_route_writers
from benchmarks.kills.schema import kill_migrations
from benchmarks.kills.spool import kill_spools
from benchmarks.kills.supervisors import kill_supervisors
from benchmarks.kills.verdict import Verdict
from benchmarks.under_load.clients import leave_and_hurry
from benchmarks.under_load.disk import fill_the_disk
from benchmarks.under_load.harm import do_harm
from benchmarks.under_load.mixed import mix_questions
from benchmarks.under_load.outages import outlast_outages
from benchmarks.under_load.restarts import restart_planes
from benchmarks.under_load.route_writes import write_while_shipping
from benchmarks.under_load.swaps import swap_versions
from benchmarks.under_load.workers import kill_workers
from benchmarks.waiting import interruptible

_PAGE = pages.DOCS / "reliability.md"
_SHOWN = 12
_PARTS = re.compile(r"^(?=### (\d+)\. )(.*?)(?=^### \d+\. |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Item:
    """One trial. `amount` and `full` are what its work counts in: rounds, kills, requests, or seconds of an outage."""

    name: str
    title: str
    work: Callable[[Verdict, random.Random, int], None]
    amount: int
    full: int


ITEMS = (
    Item("parts", "Every part is killed under light load", kill_parts, 1, 4),
    Item(
        "supervisors",
        "The supervisor is killed: in a first start, when all is up, and with its guardian",
        kill_supervisors,
        1,
        4,
    ),
    Item("routes", "Holders of a lease are killed while they write routes", kill_route_writers, 60, 240),
    Item("artifacts", "Processes are killed while they keep and discard artifacts", kill_puts, 60, 240),
    Item("schema", "Creation and migration of the database are killed", kill_migrations, 20, 80),
    Item(
        "spool",
        "HTTP processes and shippers are killed while they bring predictions into the database",
        kill_spools,
        60,
        240,
    ),
    Item("swap", "Under load, traffic is swapped between two versions", swap_versions, 20, 50),
    Item("workers", "Under load, workers are killed", kill_workers, 10, 100),
    Item(
        "restarts",
        "Under load, HTTP processes are killed, the data plane is restarted, its parent is killed",
        restart_planes,
        1,
        10,
    ),
    Item(
        "outages",
        "Under load, database, MLflow, Prefect and control plane are gone, singly and together",
        outlast_outages,
        15,
        120,
    ),
    Item("disk", "Under load, the disk of the spool is full", fill_the_disk, 15, 120),
    Item("harm", "Under load, rows and models do harm", do_harm, 1, 10),
    Item("clients", "Under load, clients leave and clients are in a hurry", leave_and_hurry, 2, 20),
    Item(
        "mixed",
        "Thousands of different questions at once, against direct calls of the models",
        mix_questions,
        4_000,
        40_000,
    ),
    Item("writes", "Routes are written while predictions are shipped flat out", write_while_shipping, 300, 3_000),
)
"""In the order of their numbers, which begin with 1."""


def main(arguments: Sequence[str]) -> int:
    """Run the items, print and perhaps write what they found; the exit status."""
    options = _options(arguments)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"seed {options.seed}, {'full' if options.full else 'short'} counts")
    verdicts = []
    with interruptible():
        for number in options.items:
            verdicts.append(_run(number, options.seed, full=options.full))
            _show(console, verdicts[-1])
    if options.write:
        old = pages.read_section(_PAGE, "chaos")
        pages.write_section(_PAGE, "chaos", _merged(old, verdicts, options))
        console.print(f"written into docs/{_PAGE.name}")
    return int(not all(each.passed for each in verdicts))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="default: another each time")
    parser.add_argument("--item", nargs="*", default=[], metavar="ITEM", help="only these, by number or name")
    parser.add_argument("--full", action="store_true", help="the counts that take long")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/reliability.md")
    options = parser.parse_args(arguments)
    numbers = {str(number): number for number in range(1, len(ITEMS) + 1)}
    numbers |= {item.name: number for number, item in enumerate(ITEMS, 1)}
    for each in options.item:
        if each not in numbers:
            parser.error(f"there is no item {each}; there are {', '.join(numbers)}")
    options.items = [numbers[each] for each in options.item] or list(range(1, len(ITEMS) + 1))
    return options


def _run(number: int, seed: int, *, full: bool) -> Verdict:
    item = ITEMS[number - 1]
    verdict = Verdict(number, item.title)
    began = time.monotonic()
    try:
        # Of its own for each item, so that one item alone gets the same moments as in a whole run.
        item.work(verdict, random.Random(f"{seed}/{number}"), item.full if full else item.amount)
    except Exception as error:  # noqa: BLE001 - an item that broke off has failed; the others are still worth running
        verdict.problems.append(f"broke off: {type(error).__name__}: {error}")
    verdict.figure("took", f"{time.monotonic() - began:.0f} s")
    return verdict


def _show(console: Console, verdict: Verdict) -> None:
    style, word = ("green", "PASS") if verdict.passed else ("red", "FAIL")
    if verdict.passed and verdict.skipped:
        style, word = "yellow", "SKIP"
    console.print(f"\n[{style}]{word}[/] {verdict.number}. {verdict.title}")
    if verdict.skipped:
        console.print(f"     {verdict.skipped}", markup=False)
    for name, value in verdict.figures:
        console.print(f"     {name}: {value}", markup=False)
    for each in verdict.problems[:_SHOWN]:
        console.print(f"  -> {each}", markup=False, style="red")
    if len(verdict.problems) > _SHOWN:
        console.print(f"  -> and {len(verdict.problems) - _SHOWN} more", style="red")


def _part(verdict: Verdict, options: argparse.Namespace) -> str:
    """What the page says of one item."""
    item = ITEMS[verdict.number - 1]
    arguments = ["--item", item.name, "--seed", str(options.seed), *(["--full"] if options.full else [])]
    # What the problems say names folders of this machine: they are for the terminal.
    outcome = "passed" if verdict.passed else f"FAILED, {len(verdict.problems)} problems"
    if verdict.passed and verdict.skipped:
        outcome = f"not tried: {verdict.skipped}"
    figures = pages.table(("what", "figure"), [[name, value] for name, value in verdict.figures])
    return "\n\n".join(
        [f"### {verdict.number}. {verdict.title}: {outcome}", pages.measured_on("benchmarks.chaos", arguments), figures]
    )


def _merged(old: str, verdicts: Sequence[Verdict], options: argparse.Namespace) -> str:
    """The section with what was found now; items that were not run keep what was found of them before."""
    parts = {int(number): text.strip() for number, text in _PARTS.findall(old)}
    parts = {number: text for number, text in parts.items() if number <= len(ITEMS)}
    parts |= {each.number: _part(each, options) for each in verdicts}
    return "\n\n".join(parts[number] for number in sorted(parts))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
