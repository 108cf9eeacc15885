"""What every trial under load asks of its requests."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.kills.verdict import Verdict
from benchmarks.under_load.exchange import Fate, Outcome
from benchmarks.under_load.traffic import Traffic, tally

_SHOWN = 3


@dataclass(frozen=True)
class Window:
    """From when to when, on the monotonic clock, something was out of service that excuses these outcomes."""

    name: str
    began: float
    ended: float
    excuses: frozenset[Fate | int]  # fates, and statuses of answers
    ports: frozenset[int] | None = None  # of the clients concerned; None for all
    later: frozenset[Fate | int] = frozenset()  # excused too, of requests that were sent after it had begun

    def explains(self, outcome: Outcome) -> bool:
        """Whether the request was under way in it and ended in a way it excuses."""
        what = outcome.status if outcome.fate is Fate.ANSWERED else outcome.fate
        excused = what in self.excuses or (what in self.later and outcome.began >= self.began)
        return self.met(outcome) and excused and (self.ports is None or outcome.port in self.ports)

    def met(self, outcome: Outcome) -> bool:
        """Whether the request was under way in it."""
        return outcome.began <= self.ended and outcome.ended >= self.began


def judge_traffic(
    verdict: Verdict,
    name: str,
    traffic: Traffic,
    windows: Sequence[Window] = (),
    allowed: Collection[int] = (200,),
) -> None:
    """None hung, none was wrong, and whatever was not answered with an allowed status is explained."""
    verdict.figure(f"{name}: sent, answered", f"{traffic.sent}, {tally(traffic.outcomes)}")
    verdict.require(
        len(traffic.outcomes) == traffic.sent, f"{name}: of {traffic.sent} requests {len(traffic.outcomes)} ended"
    )
    judge_outcomes(verdict, name, traffic.outcomes, windows, allowed)


def judge_outcomes(
    verdict: Verdict,
    name: str,
    outcomes: Iterable[Outcome],
    windows: Sequence[Window] = (),
    allowed: Collection[int] = (200,),
) -> None:
    """As `judge_traffic`, of outcomes alone."""
    problems: Counter[str] = Counter()
    for each in outcomes:
        if each.fault:
            problems[each.fault] += 1
        elif each.fate is Fate.HUNG:
            problems[f"hung for {each.seconds:.1f} s"] += 1
        elif each.status not in allowed and not any(window.explains(each) for window in windows):
            problems[_described(each, windows)] += 1
    verdict.problems += [f"{name}: {count} x {what}" for what, count in problems.most_common(_SHOWN)]


def _described(outcome: Outcome, windows: Sequence[Window]) -> str:
    what = str(outcome.status) if outcome.fate is Fate.ANSWERED else str(outcome.fate)
    if outcome.reused:
        what += " on a connection that had been in use"
    met = {window.name: outcome.began - window.began for window in windows if window.met(outcome)}
    return f"{what}, sent beside: " + (
        ", ".join(f"{name} ({since:+.1f} s)" for name, since in met.items()) or "nothing"
    )


def times_of(outcomes: Iterable[Outcome]) -> str:
    """How long the answers took: median, 99th percentile and longest, in milliseconds."""
    ordered = sorted(each.seconds * 1000 for each in outcomes if each.fate is Fate.ANSWERED)
    if not ordered:
        return "-"
    at = [ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]]
    return "p50 {:.1f} ms, p99 {:.1f} ms, max {:.0f} ms".format(*at)
