"""What the figures should be, and whether they are: every target a ratio or a bound within one run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.serving.arrivals import SHARES
from benchmarks.serving.candidates import OURS
from benchmarks.serving.features import FULL, ONE_VERSION, THREE_MODELS, WITHOUT_THE_LOG
from benchmarks.serving.field import EMPTY, FASTAPI, LITSERVE
from benchmarks.serving.measure import Figures
from benchmarks.serving.overload import grows
from benchmarks.serving.results import Closed, Results, in_common

NOT_MEASURED = "not measured"
MOST_MEMORY = 600e6  # bytes
MOST_IDLE = 0.01  # of a core
MOST_LAG = 60.0  # seconds
MOST_TO_REFUSE = 0.05  # seconds
LEAST_GOODPUT = 0.9
MOST_HELD_BACK = 0.01  # of all requests
_TAIL = 5.0  # p99 to p50
_TAIL_AT = SHARES[2]


@dataclass(frozen=True)
class Verdict:
    """A target beside what was found."""

    what: str
    target: str
    aim: str  # empty where there is none beyond the target
    found: str
    met: bool | None  # None: not measured


def verdicts(results: Results) -> list[Verdict]:
    """Every target, also those that were not measured."""
    closed = {each.model: each for each in results.closed}
    return [
        *_throughput(closed.get("logistic")),
        _flights(closed.get("flights")),
        _one_connection(closed.get("logistic")),
        *_tails(results),
        *_overload(results),
        *_features(results),
        _lag(results),
        *_idle(results),
    ]


def _throughput(closed: Closed | None) -> Iterator[Verdict]:
    best = closed.best_peer(32) if closed else None
    title = f" ({closed.titles[best]})" if closed and best else ""
    for what, peer, least, aim in (
        ("requests/s beside stock LitServe, 32 connections", LITSERVE, 15.0, "18 x"),
        (f"requests/s beside the best peer{title}, 32 connections", best, 7.0, "9 x"),
    ):
        yield _times(what, _ratio(closed, 32, peer, _rate), least, aim)
    share = _ratio(closed, 32, EMPTY, _rate)
    yield Verdict(
        "requests/s beside the empty route, 32 connections", "at least 60 %", "80 %",
        NOT_MEASURED if share is None else f"{share:.0%}", None if share is None else share >= 0.6,
    )  # fmt: skip


def _flights(closed: Closed | None) -> Verdict:
    ratios = [_ratio(closed, 32, each, _rate) for each in FASTAPI]
    known = [each for each in ratios if each is not None]
    return _times("requests/s beside the better FastAPI, flights, 32 connections", min(known, default=None), 7.0, "")


def _one_connection(closed: Closed | None) -> Verdict:
    ratios = [_ratio(closed, 1, each, lambda figures: figures.load.p50) for each in FASTAPI]
    known = [each for each in ratios if each is not None]
    ratio = max(known, default=None)
    return Verdict(
        "p50 beside the better FastAPI's, 1 connection", "at most 1.20 x", "",
        NOT_MEASURED if ratio is None else f"{ratio:.2f} x", None if ratio is None else ratio <= 1.2,
    )  # fmt: skip


def _tails(results: Results) -> Iterator[Verdict]:
    what = f"p99 beside p50, open loop at {_TAIL_AT:.0%}"
    if not results.open:
        yield Verdict(what, f"under {_TAIL:.0f} x", "", NOT_MEASURED, None)
    for loops in results.open:
        load = loops.shares[_TAIL_AT].load
        ratio = load.p99 / load.p50
        # When all connections are taken, all wait alike: the ratio looks good because everything is slow.
        waited = load.held_back / max(1, load.answered_in_all)
        found = f"{ratio:.1f} x" + (
            f", but {waited:.0%} had to wait for a connection" if waited > MOST_HELD_BACK else ""
        )
        met = ratio < _TAIL and waited <= MOST_HELD_BACK
        yield Verdict(f"{what}, {loops.title}", f"under {_TAIL:.0f} x", "", found, met)


def _overload(results: Results) -> Iterator[Verdict]:
    found = results.overload
    what = "overload: "
    if found is None:
        yield Verdict(
            f"{what}goodput, refusals, queue", f"at least {LEAST_GOODPUT:.0%} of the maximum", "", NOT_MEASURED, None
        )
        return
    load = found.load
    goodput = load.rate / found.maximum
    yield Verdict(
        f"{what}goodput beside the maximum", f"at least {LEAST_GOODPUT:.0%}", "", f"{goodput:.0%}",
        goodput >= LEAST_GOODPUT,
    )  # fmt: skip
    rest = {status: count for status, count in load.errors.items() if status != "429"}
    yield Verdict(f"{what}all others refused with 429", "nothing else", "", _counts(rest) or "nothing else", not rest)
    refused = load.refused_p99
    yield Verdict(
        f"{what}refused within, p99", f"{MOST_TO_REFUSE * 1e3:.0f} ms", "",
        "nobody refused" if refused is None else f"{refused * 1e3:.1f} ms",
        refused is not None and refused <= MOST_TO_REFUSE,
    )  # fmt: skip
    told = all(each.isdigit() for each in load.retry_after)
    share = found.crowd_served / found.crowd_refused if found.crowd_refused else None
    yield Verdict(
        f"{what}a refused crowd that waits as told and returns is served", "all, every refusal says how long", "",
        "nobody refused" if share is None else f"{share:.0%} of {found.crowd_refused}",
        None if share is None else told and share == 1,
    )  # fmt: skip
    most = max(found.under_way, default=0.0)
    # Also before the server's door: what is answered would take longer and longer.
    longer = grows(found.under_way) or (len(load.thirds) == 3 and load.thirds[2] > 1.2 * load.thirds[1] + 0.01)
    yield Verdict(
        f"{what}queue", f"does not grow, at most {found.limit}", "",
        f"{'grows' if longer else 'does not grow'}, at most {most:.0f}",
        bool(found.under_way) and not longer and most <= found.limit,
    )  # fmt: skip


def _features(results: Results) -> Iterator[Verdict]:
    for what, of, against, most in (
        ("cost of three models with two versions each, against one of one version", THREE_MODELS, ONE_VERSION, 0.10),
        ("cost of the prediction log", FULL, WITHOUT_THE_LOG, 0.15),
    ):
        cost = results.features.cost(of, against) if results.features else None
        why = (results.features.absent if results.features else {}).get(against, "")
        found = f"{NOT_MEASURED}{': ' if why else ''}{why}" if cost is None else f"{cost:.1%}"
        yield Verdict(what, f"at most {most:.0%}", "", found, None if cost is None else cost <= most)


def _lag(results: Results) -> Verdict:
    what, target = "lag of the log after saturation, gone at half load", f"within {MOST_LAG:.0f} s"
    lag = results.lag
    if lag is None:
        return Verdict(what, target, "", NOT_MEASURED, None)
    found = f"not after {lag.waited:.0f} s" if lag.gone_after is None else f"{lag.gone_after:.1f} s"
    return Verdict(what, target, "", found, lag.gone_after is not None and lag.gone_after <= MOST_LAG)


def _idle(results: Results) -> Iterator[Verdict]:
    idle = results.idle
    yield Verdict(
        "idle: CPU of the whole data plane", "under 1 % of a core", "",
        f"{idle.cpu:.2%}" if idle else NOT_MEASURED, idle.cpu < MOST_IDLE if idle else None,
    )  # fmt: skip
    size = idle.pss if idle else None
    yield Verdict(
        "idle: memory with the flights model (PSS)", "under 600 MB", "",
        NOT_MEASURED if size is None else f"{size / 1e6:.0f} MB", None if size is None else size < MOST_MEMORY,
    )  # fmt: skip


def _times(what: str, ratio: float | None, least: float, aim: str) -> Verdict:
    found = NOT_MEASURED if ratio is None else f"{ratio:.1f} x"
    return Verdict(what, f"at least {least:g} x", aim, found, None if ratio is None else ratio >= least)


def _ratio(closed: Closed | None, connections: int, peer: str | None, of: Callable[[Figures], float]) -> float | None:
    if closed is None or peer is None:
        return None
    return in_common(closed.of(OURS, connections), closed.of(peer, connections), of)


def _rate(figures: Figures) -> float:
    return figures.load.rate


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))
