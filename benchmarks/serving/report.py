"""Figures of a run as tables, for the terminal and for the page: medians over the rounds, ratios within one round."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import pages
from benchmarks.serving.candidates import OURS
from benchmarks.serving.features import FULL
from benchmarks.serving.measure import Figures
from benchmarks.serving.results import Closed, Features, OpenLoops, Overload, Results, in_common, ratios_of
from benchmarks.serving.targets import verdicts

_MIB = 2**20
_CLOSED = (
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
_OPEN = (
    "offered", "requests/s", "p50, ms", "p95, ms", "p99, ms", "p99 / p50", "errors", "waited for a connection",
    "generator late, p99 ms", "CPU, us/request",
)  # fmt: skip
_FEATURES = ("variant", "requests/s", "beside everything on", "CPU, us/request")
_TARGETS = ("target", "wanted", "aimed at", "found", "met")


class Block(NamedTuple):
    """A table with what stands above it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(console: Console, results: Results) -> None:
    """Everything, on the terminal."""
    for block in _blocks(results):
        shown = Table(*block.head, title=block.title, title_justify="left", box=None)
        for column in shown.columns:
            column.no_wrap = True
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in block.rows:
            shown.add_row(*row)
        console.print(shown, "", sep="\n")
    for sentence in _sentences(results):
        console.print(sentence)


def section(results: Results, arguments: Sequence[str], plot: str | None) -> str:
    """The section of the page; `plot` is the picture's file beside it."""
    parts = [pages.measured_on("benchmarks.serving", arguments), _how(results)]
    if plot:
        parts.append(f"![Requests per second at 32 connections, and latency in the open loop]({plot})")
    for block in _blocks(results):
        parts += [f"### {block.title[0].upper()}{block.title[1:]}", pages.table(block.head, block.rows)]
    return "\n\n".join([*parts, *_sentences(results)])


def _blocks(results: Results) -> Iterator[Block]:
    yield Block("targets", _TARGETS, [
        (each.what, each.target, each.aim or "-", each.found, {True: "yes", False: "**no**", None: "-"}[each.met])
        for each in verdicts(results)
    ])  # fmt: skip
    for closed in results.closed:
        yield from _closed_blocks(closed)
    for loops in results.open:
        yield _open_block(loops)
    if results.overload:
        yield _overload_block(results.overload)
    if results.features:
        yield _features_block(results.features)


def _closed_blocks(closed: Closed) -> Iterator[Block]:
    for connections in sorted({count for _, count in closed.found}):
        ours = closed.of(OURS, connections)
        names = [name for name, count in closed.found if count == connections]
        rated = {name: median(each.load.rate for each in closed.of(name, connections).values()) for name in names}
        rows = [
            _closed_row(closed, name, connections, ours) for name in sorted(names, key=rated.__getitem__, reverse=True)
        ]
        yield Block(f"{closed.title}; closed loop, {_plural(connections)}", _CLOSED, rows)


def _closed_row(closed: Closed, name: str, connections: int, ours: Mapping[int, Figures]) -> Sequence[str]:
    rounds = closed.of(name, connections)
    ratio = None if name == OURS else in_common(ours, rounds, lambda each: each.load.rate)
    sizes = [each.pss for each in rounds.values() if each.pss is not None]
    loads = [each.load for each in rounds.values()]
    return (
        closed.titles[name],
        f"{median(each.rate for each in loads):,.0f}",
        "" if ratio is None else f"{ratio:.1f} x" if ratio >= 1 else f"{ratio:.2f} x",
        *(_milliseconds(times) for times in zip(*((each.p50, each.p95, each.p99) for each in loads), strict=True)),
        str(sum(sum(each.errors.values()) for each in loads)),
        _microseconds(rounds.values()),
        f"{median(sizes) / _MIB:.0f}" if sizes else "-",
    )


def _open_block(loops: OpenLoops) -> Block:
    rows = [
        (
            f"{share:.0%}: {each.load.offered or 0:,.0f}/s",
            f"{each.load.rate:,.0f}",
            *(f"{value * 1e3:.2f}" for value in (each.load.p50, each.load.p95, each.load.p99)),
            f"{each.load.p99 / each.load.p50:.1f}",
            str(sum(each.load.errors.values())),
            str(each.load.held_back),
            f"{(each.load.generator_late or 0) * 1e3:.2f}",
            f"{each.cpu_per_request * 1e6:.0f}",
        )
        for share, each in sorted(loops.shares.items())
    ]
    return Block(f"{loops.title}; open loop, shares of {loops.maximum:,.0f} requests/s", _OPEN, rows)


def _overload_block(found: Overload) -> Block:
    load = found.load
    tries = {count: found.attempts.count(count) for count in sorted(set(found.attempts))}
    told = ", ".join(f"{value} s: {count}" for value, count in load.retry_after.items())
    rows = [
        ("offered, requests/s", f"{load.offered or 0:,.0f}, twice {found.maximum:,.0f}"),
        ("answered, requests/s", f"{load.rate:,.0f}"),
        ("p50, p95, p99 of those, ms", ", ".join(f"{each * 1e3:.1f}" for each in (load.p50, load.p95, load.p99))),
        ("p50 by thirds of the time, ms", ", ".join(f"{each * 1e3:.1f}" for each in load.thirds)),
        ("other statuses", ", ".join(f"{what}: {count}" for what, count in load.errors.items()) or "none"),
        (
            "p99 until refused, since due and since sent, ms",
            ", ".join(
                "-" if each is None else f"{each * 1e3:.1f}" for each in (load.refused_p99, load.refused_sent_p99)
            ),
        ),
        ("waited for one of 512 connections", f"{load.held_back:,}"),
        ("Retry-After of refusals", told or "-"),
        ("under way, by the metric: least, most, last", _spread(found.under_way)),
        ("generator late, p99 ms", f"{(load.generator_late or 0) * 1e3:.2f}"),
        (
            "patient clients meanwhile: served after so many attempts",
            ", ".join(f"{count}: {times}" for count, times in tries.items()) + f"; gave up: {found.unserved}",
        ),
        (
            "a crowd of twice as many as may be under way, afterwards",
            f"{found.crowd_refused} refused, {found.crowd_served} of them served on their first return",
        ),
    ]
    return Block(f"overload: {found.title}, not compiled, batch_size 8", ("figure", "found"), rows)


def _features_block(features: Features) -> Block:
    full = features.rounds.get(FULL, ())
    rows = []
    for name, rounds in features.rounds.items():
        ratios = ratios_of(rounds, full)
        rows.append((
            name,
            f"{median(each.load.rate for each in rounds):,.0f}",
            f"{median(ratios):.1%}" if ratios and name != FULL else "",
            _microseconds(rounds),
        ))  # fmt: skip
    rows += [(name, f"not measured: {why}", "", "") for name, why in features.absent.items()]
    return Block("what features cost: 32 connections, in turns", _FEATURES, rows)


def _sentences(results: Results) -> Iterator[str]:
    if results.lag:
        lag = results.lag
        gone = f"not gone after {lag.waited:.0f} s" if lag.gone_after is None else f"gone after {lag.gone_after:.1f} s"
        yield (
            f"Lag of the prediction log: after {lag.saturated.seconds:.0f} s at {lag.saturated.rate:,.0f} requests/s "
            f"{lag.behind_bytes / _MIB:.1f} MiB waited, the oldest for {lag.behind_seconds:.1f} s; at "
            f"{lag.half:,.0f} requests/s it was {gone}."
        )
    if results.idle:
        idle = results.idle
        size = "-" if idle.pss is None else f"{idle.pss / _MIB:.0f} MiB ({idle.pss / 1e6:.0f} MB)"
        yield (
            f"Idle, with the flights model in two versions: {idle.cpu:.2%} of a core over {idle.seconds:.0f} s, "
            f"{size} of memory (PSS) in {idle.processes} processes."
        )
    for closed in results.closed:
        for title, why in closed.absent.items():
            yield f"Not measured: {title} on {closed.model}, {why}."
    for title, what in results.wrong().items():
        yield f"Wrong answers: {title}: {what}."
    for part, why in results.broken.items():
        yield f"Broke off: {part}: {why}."
    errors = results.our_errors()
    said = ", ".join(f"{what}: {count}" for what, count in errors.items())
    yield f"Requests to Switchyard that were not answered, but for refusals in the overload: {said or 'none'}."


def _how(results: Results) -> str:
    generator = "wrk, one thread" if results.generator == "wrk" else "benchmarks/serving/generator.py"
    plan = results.plan
    return (
        f"Closed loop by {generator}, open loop and overload by benchmarks/serving/generator.py, all on the same "
        f"machine; somebody else took up to {results.others():.0%} of a core meanwhile. One record a request, "
        f"{plan.seconds:g} s a closed loop and {plan.open_seconds:g} s an open one after a second of warm-up, servers "
        f"started anew and taking turns in each of {plan.rounds} rounds: medians, and ratios within a round. All "
        "answers were compared with scikit-learn's first. Switchyard validates, splits traffic between two versions, "
        "logs every prediction durably, counts and gives ids; the others do not. The open loop's times begin when a "
        "request was due, and its maximum is the closed loop's by the same generator, which as a client of another "
        "machine does not interrupt the server at each answer (SCHED_BATCH). CPU and PSS are those of the "
        "whole process tree."
    )


def _plural(connections: int) -> str:
    return f"{connections} connection{'' if connections == 1 else 's'}"


def _milliseconds(times: Sequence[float]) -> str:
    return f"{median(times) * 1e3:.2f}"


def _microseconds(figures: Iterable[Figures]) -> str:
    return f"{median(each.cpu_per_request for each in figures) * 1e6:.0f}"


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.0f}, {max(values):.0f}, {values[-1]:.0f}" if values else "-"
