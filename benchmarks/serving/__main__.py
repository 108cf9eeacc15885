"""Requests per second, latency, CPU and memory beside peers. Run by `make bench`.

    python -m benchmarks.serving [--rounds N] [--seconds N] [--model NAME ...] [--candidate NAME ...] [--write]

Starts one server at a time for one model, compares its answers with scikit-learn's, and loads it; candidates take
turns in every round, and what is shown is the median over the rounds. With --write the figures go into
docs/performance.md. Status 1 when any server answered wrongly, or ours refused a request.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console

from benchmarks import pages
from benchmarks.serving.candidates import CANDIDATES, Candidate
from benchmarks.serving.load import run_closed
from benchmarks.serving.measure import Figures, Generator, WrongAnswers, measure
from benchmarks.serving.models import MODELS, BenchModel
from benchmarks.serving.report import Results, section, show
from benchmarks.serving.wrk import find_wrk, run_wrk
from benchmarks.waiting import interruptible

_PAGE = pages.DOCS / "performance.md"
_CONNECTIONS = (1, 32)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, perhaps write the page; the exit status."""
    options = _options(arguments)
    # Piped, it would cut the tables to 80 columns.
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    generator: Generator = run_wrk if options.generator == "wrk" else run_closed
    results = Results(generator=options.generator, rounds=options.rounds, seconds=options.seconds)
    failed = False
    with interruptible():
        for name in options.model:
            model = MODELS[name]()
            found, wrong = _rounds(model, options, generator, console)
            failed |= wrong
            results.models.append((model, found))
            show(console, model, found)
    if options.write:
        pages.write_section(_PAGE, "serving", section(results, arguments))
        console.print(f"written into docs/{_PAGE.name}")
    return int(failed or results.has_errors())


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    names = [each.name for each in CANDIDATES]
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds in which every candidate takes a turn (default: 3)"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement (default: 4)")
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--candidate", nargs="+", choices=names, default=names, help="default: all")
    default = "wrk" if find_wrk() else "own"
    parser.add_argument("--generator", choices=["wrk", "own"], default=default, help="default here: %(default)s")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    return parser.parse_args(arguments)


def _rounds(
    model: BenchModel, options: argparse.Namespace, generator: Generator, console: Console
) -> tuple[dict[tuple[Candidate, int], list[Figures]], bool]:
    """(candidate, connections) -> its figures, one a round; and whether somebody answered wrongly."""
    found: dict[tuple[Candidate, int], list[Figures]] = defaultdict(list)
    chosen = [each for each in CANDIDATES if each.name in options.candidate]
    wrong: set[str] = set()
    for number in range(options.rounds):
        # Each round begins with another one, so that nobody always follows the same neighbour.
        for candidate in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            if candidate.name in wrong:
                continue
            connections = [*_CONNECTIONS, *candidate.extra_connections]
            try:
                figures = measure(candidate, model, generator, connections, options.seconds)
            except WrongAnswers as problem:
                console.print(f"[red]wrong answers[/] {problem}")
                wrong.add(candidate.name)
                continue
            for count, each in figures.items():
                found[candidate, count].append(each)
            shown = ", ".join(f"{each.load.rate:,.0f}/s at {count}" for count, each in figures.items())
            console.print(f"{model.name}, round {number + 1}, {candidate.title}: {shown}")
    return found, bool(wrong)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
