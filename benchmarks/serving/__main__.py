"""Predictions beside peers, in the open loop, overloaded, and what they cost. Run by `make bench`.

    python -m benchmarks.serving [--quick] [--only PART ...] [--model NAME ...] [--candidate NAME ...] [--write]

Starts one server at a time, compares its answers with scikit-learn's, and loads it. Peers live in environments of their
own, set up at the first run and kept in .bench/; one that cannot be set up or started is reported with the reason. With
--write the figures go into docs/performance.md. Status 1 when any server answered wrongly, or ours left a request
unanswered; targets that are missed are reported, not punished.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks import pages
from benchmarks.serving.arrivals import run_open_loops
from benchmarks.serving.candidates import Candidate
from benchmarks.serving.closed import run_closed_loops
from benchmarks.serving.features import run_features
from benchmarks.serving.field import PEERS
from benchmarks.serving.idle import run_idle
from benchmarks.serving.lag import run_lag
from benchmarks.serving.load import run_closed
from benchmarks.serving.measure import Generator, NotStarted, WrongAnswers
from benchmarks.serving.models import MODELS
from benchmarks.serving.ours import switchyard
from benchmarks.serving.overload import run_overload
from benchmarks.serving.plot import draw
from benchmarks.serving.report import section, show
from benchmarks.serving.results import DEFAULT, QUICK, Plan, Results, Say
from benchmarks.serving.wrk import find_wrk, run_wrk
from benchmarks.waiting import NotInTime, interruptible

PARTS = ("closed", "open", "overload", "features", "lag", "idle")

_PAGE = pages.DOCS / "performance.md"
_PLOT = "performance-serving.svg"


def main(arguments: Sequence[str]) -> int:
    """Measure, print, perhaps write the page; the exit status."""
    options = _options(arguments)
    if not set(options.only) & set(PARTS):
        return 0  # one set of arguments for all benchmarks
    # Piped, it would cut the tables to 80 columns.
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)
    with interruptible():
        results = _measure(options, lambda words: console.print(words, markup=False))
    show(console, results)
    if options.write:
        drawn = draw(results, pages.DOCS / _PLOT)
        pages.write_section(_PAGE, "serving", section(results, arguments, _PLOT if drawn else None))
        console.print(f"written into docs/{_PAGE.name}")
    return int(bool(results.wrong() or results.broken or results.our_errors()))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    names = [each.name for each in _candidates()]
    parser.add_argument(
        "--quick", action="store_true", help="some three minutes: one short round, the nearest peers only"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help=f"parts, of {', '.join(PARTS)} (startup: none here); default: all"
    )
    parser.add_argument("--rounds", type=int, help="rounds in which every candidate takes a turn")
    parser.add_argument("--seconds", type=float, help="length of one closed loop")
    parser.add_argument(
        "--model", nargs="+", choices=list(MODELS), help="default: all, or the first two in a quick run"
    )
    parser.add_argument("--candidate", nargs="+", choices=names, help="in the closed loop; default: all")
    default = "wrk" if find_wrk() else "own"
    parser.add_argument("--generator", choices=["wrk", "own"], default=default, help="default here: %(default)s")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    options = parser.parse_args(arguments)
    unknown = set(options.only or ()) - {*PARTS, "startup"}
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)} and startup")
    plan = QUICK if options.quick else DEFAULT
    given = {"rounds": options.rounds, "seconds": options.seconds}
    options.plan = dataclasses.replace(plan, **{name: value for name, value in given.items() if value})
    quick = [each.name for each in _candidates() if each.in_quick]
    options.model = options.model or list(MODELS)[: 2 if options.quick else None]
    options.candidate = options.candidate or (quick if options.quick else names)
    options.only = options.only or PARTS
    return options


def _candidates() -> list[Candidate]:
    return [switchyard(), *PEERS]


def _measure(options: argparse.Namespace, say: Say) -> Results:
    run = _Run(options, say)
    for name in PARTS:
        if name not in options.only:
            continue
        try:
            getattr(run, name)()
        except (WrongAnswers, NotStarted, NotInTime, ChildProcessError) as problem:
            # What the other parts have found shall not be lost; the status tells.
            run.results.broken[name] = str(problem)
            say(f"{name} BROKE OFF: {problem}")
    return run.results


class _Run:
    """The parts, each a method that fills in its place in the results."""

    def __init__(self, options: argparse.Namespace, say: Say) -> None:
        self._plan: Plan = options.plan
        self._say = say
        self._generator: Generator = run_wrk if options.generator == "wrk" else run_closed
        self._models = [MODELS[name] for name in options.model]
        self._opened = self._models[:1] if options.quick else self._models
        self._chosen = [each for each in _candidates() if each.name in options.candidate]
        self._left_out = [each.title for each in _candidates() if each.name not in options.candidate]
        self.results = Results(options.generator, options.plan)

    def closed(self) -> None:
        for model in self._models:
            found = run_closed_loops(model(), self._chosen, self._plan, self._generator, self._say)
            self.results.closed.append(found)
        if self.results.closed and self._left_out:
            self.results.closed[0].absent[", ".join(self._left_out)] = "left out of this run"

    def open(self) -> None:
        for model in self._opened:
            self.results.open.append(run_open_loops(model(), self._plan, self._say))

    def overload(self) -> None:
        self.results.overload = run_overload(MODELS["forest"](), self._plan, self._say)

    def features(self) -> None:
        self.results.features = run_features(MODELS["logistic"](), self._plan, self._generator, self._say)

    def lag(self) -> None:
        self.results.lag = run_lag(MODELS["logistic"](), self._plan, self._generator, self._say)

    def idle(self) -> None:
        self.results.idle = run_idle(MODELS["flights"](), self._plan, self._generator, self._say)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
