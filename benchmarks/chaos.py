"""Reliability by killing real processes: what is lost, what is left over, how soon it is back. Run by `make chaos`.

    python -m benchmarks.chaos [--seed N] [--rounds N] [--write]
    ITEM=3 python -m benchmarks.chaos        only that item
    FULL=1 python -m benchmarks.chaos        more rounds

Prints PASS or FAIL with figures for each item; status 1 when one failed. With --write the figures go into
docs/reliability.md. A seed repeats the order and the moments of the kills, not how the system lies under them.
"""

import argparse
import os
import random
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
from benchmarks.waiting import interruptible

_PAGE = pages.DOCS / "reliability.md"
_FULL_ROUNDS = 4
_SHOWN = 12


@dataclass(frozen=True)
class Item:
    """One trial; `amount` is how often a round does it: rounds for whole stacks, kills for single processes."""

    title: str
    work: Callable[[Verdict, random.Random, int], None]
    amount: int


ITEMS = {
    1: Item("Every part is killed under light load", kill_parts, 1),
    2: Item("The supervisor is killed: in a first start, when all is up, and with its guardian", kill_supervisors, 1),
    3: Item("Holders of a lease are killed while they write routes", kill_route_writers, 60),
    4: Item("Processes are killed while they keep and discard artifacts", kill_puts, 60),
    5: Item("Creation and migration of the database are killed", kill_migrations, 20),
    6: Item("HTTP processes and shippers are killed while they bring predictions into the database", kill_spools, 60),
}


def main(arguments: Sequence[str]) -> int:
    """Run the items, print and perhaps write what they found; the exit status."""
    options = _options(arguments)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"seed {options.seed}, rounds {options.rounds}")
    verdicts = []
    with interruptible():
        for number in options.items:
            verdicts.append(_run(number, options.seed, options.rounds))
            _show(console, verdicts[-1])
    if options.write:
        pages.write_section(_PAGE, "chaos", _section(verdicts, options))
        console.print(f"written into docs/{_PAGE.name}")
    return int(not all(each.passed for each in verdicts))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="default: another each time")
    rounds = _FULL_ROUNDS if os.environ.get("FULL") == "1" else 1
    parser.add_argument("--rounds", type=int, default=rounds, help="default: 1, with FULL=1 %(default)s")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/reliability.md")
    options = parser.parse_args(arguments)
    only = os.environ.get("ITEM")
    if only and only not in map(str, ITEMS):
        parser.error(f"ITEM={only}: there are items {min(ITEMS)} to {max(ITEMS)}")
    options.items = [int(only)] if only else list(ITEMS)
    return options


def _run(number: int, seed: int, rounds: int) -> Verdict:
    item = ITEMS[number]
    verdict = Verdict(number, item.title)
    began = time.monotonic()
    try:
        # Of its own for each item, so that one item alone gets the same moments as in a whole run.
        item.work(verdict, random.Random(f"{seed}/{number}"), item.amount * rounds)
    except Exception as error:  # noqa: BLE001 - an item that broke off has failed; the others are still worth running
        verdict.problems.append(f"broke off: {type(error).__name__}: {error}")
    verdict.figure("took", f"{time.monotonic() - began:.0f} s")
    return verdict


def _show(console: Console, verdict: Verdict) -> None:
    style, word = ("green", "PASS") if verdict.passed else ("red", "FAIL")
    console.print(f"\n[{style}]{word}[/] {verdict.number}. {verdict.title}")
    for name, value in verdict.figures:
        console.print(f"     {name}: {value}", markup=False)
    for each in verdict.problems[:_SHOWN]:
        console.print(f"  -> {each}", markup=False, style="red")
    if len(verdict.problems) > _SHOWN:
        console.print(f"  -> and {len(verdict.problems) - _SHOWN} more", style="red")


def _section(verdicts: Sequence[Verdict], options: argparse.Namespace) -> str:
    arguments = ["--seed", str(options.seed), "--rounds", str(options.rounds)]
    parts = [pages.measured_on("benchmarks.chaos", arguments)]
    for each in verdicts:
        rows = [[name, value] for name, value in each.figures]
        # What the problems say names folders of this machine: they are for the terminal.
        outcome = "passed" if each.passed else f"FAILED, {len(each.problems)} problems"
        parts += [f"### {each.number}. {each.title}: {outcome}", pages.table(("what", "figure"), rows)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
