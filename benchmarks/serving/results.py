"""What a whole run has found, part by part. Numbers only; what they should be is in targets.py."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.serving.candidates import OURS
from benchmarks.serving.measure import Figures
from benchmarks.serving.outcome import Load

Say = Callable[[str], None]
"""Tells whoever waits how far the run is."""


@dataclass(frozen=True)
class Plan:
    """How long and how often everything is measured."""

    rounds: int  # in which every candidate takes a turn
    seconds: float  # of one closed loop
    open_seconds: float  # of one open loop
    alternations: int  # of the variants whose features cost something
    saturated_seconds: float
    idle_seconds: float


DEFAULT = Plan(rounds=3, seconds=3.0, open_seconds=6.0, alternations=5, saturated_seconds=20.0, idle_seconds=15.0)
QUICK = Plan(rounds=1, seconds=1.0, open_seconds=2.0, alternations=2, saturated_seconds=4.0, idle_seconds=5.0)


@dataclass
class Closed:
    """Everybody on one model in the closed loop."""

    model: str
    title: str
    found: dict[tuple[str, int], dict[int, Figures]] = field(default_factory=dict)  # candidate, connections -> by round
    titles: dict[str, str] = field(default_factory=dict)
    ceilings: set[str] = field(default_factory=set)  # candidates that serve no model
    absent: dict[str, str] = field(default_factory=dict)  # title -> why there are no figures, or not of every round
    wrong: dict[str, str] = field(default_factory=dict)  # title -> what it answered

    def of(self, candidate: str, connections: int) -> dict[int, Figures]:
        """By round; empty where it was not measured."""
        return self.found.get((candidate, connections), {})

    def best_peer(self, connections: int) -> str | None:
        """The candidate with most requests per second that serves the model and is not ours."""
        rates = {
            name: median(each.load.rate for each in rounds.values())
            for (name, count), rounds in self.found.items()
            if count == connections and name != OURS and name not in self.ceilings
        }
        return max(rates, key=rates.__getitem__) if rates else None


@dataclass(frozen=True)
class OpenLoops:
    """Ours on one model, with requests that arrive when they arrive."""

    title: str
    maximum: float  # requests/s of the closed loop, the larger of 32 and 128 connections, by the same generator
    shares: Mapping[float, Figures]  # share of the maximum -> what came of it


@dataclass(frozen=True)
class Overload:
    """Ours with more requests than it can compute."""

    title: str
    maximum: float  # requests/s, as in OpenLoops
    load: Load
    limit: int  # requests that may be under way at once
    under_way: Sequence[float]  # as its metric says, sampled over time
    attempts: Sequence[int]  # of clients that waited as told while it lasted: after how many they were served
    unserved: int  # of those clients: gave up
    crowd_refused: int  # of a crowd that came at once afterwards
    crowd_served: int  # of those, on their first return, having waited as told


@dataclass(frozen=True)
class Features:
    """Ours in several shapes, alternating."""

    rounds: Mapping[str, Sequence[Figures]]  # variant -> its figures, one an alternation
    absent: Mapping[str, str]  # variant -> why it was not measured

    def cost(self, of: str, against: str) -> float | None:
        """Share of the throughput of `against` that `of` lacks: the median over the alternations; negative for none."""
        ratios = ratios_of(self.rounds.get(of, ()), self.rounds.get(against, ()))
        return 1 - median(ratios) if ratios else None


@dataclass(frozen=True)
class Lag:
    """The shipper after a time of saturation."""

    saturated: Load
    behind_bytes: int
    behind_seconds: float  # age of the oldest prediction that was not in the database when saturation ended
    half: float  # requests/s that arrived from then on
    gone_after: float | None  # seconds until only what had just come was left; None: not while it was waited for
    waited: float  # seconds


@dataclass(frozen=True)
class Idle:
    """The whole data plane without traffic, with the flights model loaded in two versions."""

    seconds: float
    cpu: float  # share of one core
    pss: int | None  # bytes
    processes: int


@dataclass
class Results:
    """Everything. A part that was not asked for is empty."""

    generator: str
    plan: Plan
    closed: list[Closed] = field(default_factory=list)
    open: list[OpenLoops] = field(default_factory=list)
    overload: Overload | None = None
    features: Features | None = None
    lag: Lag | None = None
    idle: Idle | None = None
    broken: dict[str, str] = field(default_factory=dict)  # part -> why it broke off

    def wrong(self) -> dict[str, str]:
        """Who answered something else than scikit-learn."""
        return {name: what for each in self.closed for name, what in each.wrong.items()}

    def our_errors(self) -> dict[str, int]:
        """Requests of ours that were not answered with 200, by what came instead; in the overload 429 is right."""
        loads = [
            each.load
            for closed in self.closed
            for (who, _), rounds in closed.found.items()
            if who == OURS
            for each in rounds.values()
        ]
        loads += [each.load for loops in self.open for each in loops.shares.values()]
        loads += [each.load for variant in (self.features.rounds if self.features else {}).values() for each in variant]
        loads += [self.lag.saturated] if self.lag else []
        found: dict[str, int] = {}
        for load in loads:
            _add(found, load.errors)
        if self.overload:
            _add(found, {what: count for what, count in self.overload.load.errors.items() if what != "429"})
        return found

    def others(self) -> float:
        """The most of a core that somebody else took during any measurement."""
        return max((each.others for each in self._figures()), default=0.0)

    def _figures(self) -> Iterable[Figures]:
        for closed in self.closed:
            for rounds in closed.found.values():
                yield from rounds.values()
        for loops in self.open:
            yield from loops.shares.values()
        for variant in (self.features.rounds if self.features else {}).values():
            yield from variant


def ratios_of(ours: Sequence[Figures], theirs: Sequence[Figures]) -> list[float]:
    """Requests/s of one beside the other's, round by round."""
    return [mine.load.rate / other.load.rate for mine, other in zip(ours, theirs, strict=False) if other.load.rate]


def in_common(
    ours: Mapping[int, Figures], theirs: Mapping[int, Figures], of: Callable[[Figures], float]
) -> float | None:
    """Median ratio of a figure within the rounds that both took part in; None where there is none."""
    ratios = [of(ours[each]) / of(theirs[each]) for each in ours.keys() & theirs.keys() if of(theirs[each])]
    return median(ratios) if ratios else None


def _add(sums: dict[str, int], counts: Mapping[str, int]) -> None:
    for what, count in counts.items():
        sums[what] = sums.get(what, 0) + count
