"""Figures of a run as tables: medians over the rounds, and ratios within one round."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks import pages
from benchmarks.serving.candidates import OURS, Candidate
from benchmarks.serving.measure import Figures
from benchmarks.serving.models import BenchModel

Found = Mapping[tuple[Candidate, int], Sequence[Figures]]

_MIB = 2**20
_HEAD = (
    "server",
    "requests/s",
    "Switchyard is",
    "p50, ms",
    "p95, ms",
    "p99, ms",
    "errors",
    "CPU, us/request",
    "PSS, MiB",
)


@dataclass
class Results:
    """A whole run."""

    generator: str
    rounds: int
    seconds: float
    models: list[tuple[BenchModel, Found]] = field(default_factory=list)

    def has_errors(self) -> bool:
        """Whether any request to Switchyard was not answered with 200; what peers do is a figure."""
        ours = (rounds for _, found in self.models for (who, _), rounds in found.items() if who.name == OURS)
        return any(each.load.errors for rounds in ours for each in rounds)


def show(console: Console, model: BenchModel, found: Found) -> None:
    """One table for each number of connections."""
    for connections in _connections(found):
        shown = Table(*_HEAD, title=f"{model.title}; {connections} connections", title_justify="left", box=None)
        for column in shown.columns:
            column.no_wrap = True
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in _rows(found, connections):
            shown.add_row(*row)
        console.print(shown, "", sep="\n")


def section(results: Results, arguments: Sequence[str]) -> str:
    """The section of the page."""
    parts = [pages.measured_on("benchmarks.serving", arguments), _how(results)]
    for model, found in results.models:
        parts.append(f"### {model.title[0].upper()}{model.title[1:]}")
        for connections in _connections(found):
            plural = "" if connections == 1 else "s"
            parts += [f"{connections} connection{plural}:", pages.table(_HEAD, _rows(found, connections))]
    return "\n\n".join(parts)


def _how(results: Results) -> str:
    generator = "wrk, one thread" if results.generator == "wrk" else "benchmarks/serving/load.py"
    shares = [
        each.load.generator_cpu for _, found in results.models for rounds in found.values() for each in rounds
    ]  # fmt: skip
    late = [
        each.load.generator_late
        for _, found in results.models
        for rounds in found.values()
        for each in rounds
        if each.load.generator_late is not None
    ]
    lateness = f" and was up to {max(late) * 1e3:.1f} ms late (p99)" if late else ""
    return (
        f"Closed loop by {generator}, on the same machine; it took {min(shares) * 100:.0f} to {max(shares) * 100:.0f} % of a "
        f"core{lateness}. One record a request, {results.seconds:g} s a measurement after a second of warm-up, servers "
        f"started anew and taking turns in each of {results.rounds} rounds: medians, and the ratio of requests/s within a "
        "round. All answers were compared with scikit-learn's first. Switchyard validates, logs every prediction "
        "durably, counts and gives ids; the others do not. CPU and PSS are those of the whole process tree."
    )


def _connections(found: Found) -> list[int]:
    return sorted({connections for _, connections in found})


def _rows(found: Found, connections: int) -> list[list[str]]:
    ours = next((each for (who, count), each in found.items() if who.name == OURS and count == connections), [])
    return [
        _row(candidate, rounds, ours) for (candidate, count), rounds in sorted(found.items(), key=_fastest_first)
        if count == connections
    ]  # fmt: skip


def _fastest_first(item: tuple[tuple[Candidate, int], Sequence[Figures]]) -> float:
    return -median(each.load.rate for each in item[1])


def _row(candidate: Candidate, rounds: Sequence[Figures], ours: Sequence[Figures]) -> list[str]:
    loads = [each.load for each in rounds]
    sizes = [each.pss for each in rounds if each.pss is not None]
    return [
        candidate.title,
        f"{median(each.rate for each in loads):,.0f}",
        _ratio(rounds, ours),
        *(
            f"{median(times) * 1e3:.2f}"
            for times in zip(*((each.p50, each.p95, each.p99) for each in loads), strict=True)
        ),
        str(sum(sum(each.errors.values()) for each in loads)),
        f"{median(each.cpu_per_request for each in rounds) * 1e6:.0f}",
        f"{median(sizes) / _MIB:.0f}" if sizes else "-",
    ]


def _ratio(rounds: Sequence[Figures], ours: Sequence[Figures]) -> str:
    """How many times as fast as this one we were, in the same round."""
    if ours is rounds or not ours:
        return ""
    ratios = [mine.load.rate / theirs.load.rate for mine, theirs in zip(ours, rounds, strict=False) if theirs.load.rate]
    found = median(ratios) if ratios else math.nan
    return f"{found:.1f} x" if found >= 1 else f"{found:.2f} x"
