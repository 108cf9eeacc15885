"""Roll-ups: requests counted per span of time as they are stored, and read back over any window."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session

from serving.histogram import BUCKETS, Counts, add_packed, buckets_of, empty, pack, quantile
from serving.store.prediction_tables import RollupRow

RESOLUTIONS = (3600, 60, 5)
"""Seconds. Coarse ones keep long windows cheap, fine ones keep their edges sharp."""
FINE_SECONDS = 2 * 3600
"""How long five-second rows are kept."""

_FINEST = RESOLUTIONS[-1]
_TABLE = RollupRow.metadata.tables["rollup"]
_SUMS = ("n", "rows", "latency_sum", "histogram")
_INSERT: dict[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Countable(Protocol):
    """A logged request, as far as roll-ups are concerned."""

    model_id: str
    version: str
    arm: str | None
    role: str
    status: int
    arrived_us: int
    latency_us: int
    rows: list[tuple[float | None, str | None, float | None]]


class Stream(NamedTuple):
    """Which requests of a model are counted together."""

    version: str
    arm: str  # empty where there is no test
    role: str
    status: int


@dataclass
class Summary:
    """Requests of one or more streams over some time. Add them up to get larger ones."""

    n: int = 0  # requests
    rows: int = 0  # that they carried
    latency_sum: float = 0.0  # seconds
    counts: Counts = field(default_factory=empty)  # of their latencies, see serving/histogram.py

    def add(self, other: "Summary") -> None:
        """Add another, in place."""
        self.add_stored(other.n, other.rows, other.latency_sum, None)
        self.counts += other.counts

    def add_stored(self, n: int, rows: int, latency_sum: float, histogram: bytes | None) -> None:
        """Add a row of the table, in place."""
        self.n += n
        self.rows += rows
        self.latency_sum += latency_sum
        if histogram is not None:
            add_packed(histogram, self.counts)

    def quantile(self, q: float) -> float | None:
        """The latency in seconds that a share `q` of the requests does not exceed, within 3 %; None of no requests."""
        return quantile(self.counts, q)


class Span(NamedTuple):
    """Which roll-ups cover a part of a window: those of this resolution that start in [first, last)."""

    resolution: int
    first: int
    last: int


class _Key(NamedTuple):
    """The primary key in its order, but for the source."""

    model_id: str
    resolution: int
    start: int
    version: str
    arm: str
    role: str
    status: int


Spans = dict[_Key, Summary]
"""Requests counted per model, resolution, start and stream."""


def read_rollups(session: Session, model_id: str, since: float, until: float, *, now: float) -> dict[Stream, Summary]:
    """What arrived for a model in [since, until), by stream. All three are seconds since 1970.

    Edges lie on whole five seconds within the last two hours before `now`, on whole minutes before that: the window is
    widened to them. Add summaries of several streams up for rates, averages and quantiles over them.
    """
    merged: dict[Stream, Summary] = {}
    columns = [_TABLE.c[name] for name in (*Stream._fields, *_SUMS)]
    for span in covering(since, until, now):
        rows = session.connection().execute(
            select(*columns).where(
                _TABLE.c.model_id == model_id,
                _TABLE.c.resolution == span.resolution,
                _TABLE.c.start >= span.first,
                _TABLE.c.start < span.last,
            )
        )
        for version, arm, role, status, *sums in rows:
            merged.setdefault(Stream(version, arm, role, status), Summary()).add_stored(*sums)
    return merged


def covering(since: float, until: float, now: float) -> list[Span]:
    """The fewest rows that cover a window: hours inside, minutes around them, five seconds at the edges."""
    fine_from = now - FINE_SECONDS + 60
    first = _down(since, _FINEST if since >= fine_from else 60)
    last = -_down(-until, _FINEST if until >= fine_from else 60)
    return _cover(first, last, RESOLUTIONS)


def prune_rollups(session: Session, resolution: int, before: float) -> int:
    """Remove the rows of one resolution that start before a moment (seconds since 1970); how many they were."""
    removed = 0
    connection = session.connection()
    model_id = connection.execute(select(func.min(_TABLE.c.model_id))).scalar_one()
    while model_id is not None:
        # By the model: the key begins with it, so this reads nothing but what it removes.
        condition = (_TABLE.c.model_id == model_id, _TABLE.c.resolution == resolution, _TABLE.c.start < int(before))
        removed += connection.execute(delete(_TABLE).where(*condition)).rowcount
        following = select(func.min(_TABLE.c.model_id)).where(_TABLE.c.model_id > model_id)
        model_id = connection.execute(following).scalar_one()
    return removed


def add_rollups(connection: Connection, spans: Spans, source: str) -> None:
    """Add these, of `roll_up`, to the rows of this source, which nobody else may be writing now. They change by it."""
    if not spans:
        return
    _add_stored(connection, spans, source)
    rows = [
        {
            **key._asdict(),
            "source": source,
            "n": summary.n,
            "rows": summary.rows,
            "latency_sum": summary.latency_sum,
            "histogram": pack(summary.counts),
        }
        for key, summary in sorted(spans.items())
    ]
    statement = _INSERT[connection.dialect.name](_TABLE)
    changed = {name: statement.excluded[name] for name in _SUMS}
    connection.execute(statement.on_conflict_do_update(index_elements=list(_TABLE.primary_key), set_=changed), rows)


def roll_up(requests: Iterable[Countable]) -> Spans:
    """Requests counted per model, resolution, start, version, arm, role and status, by their arrival."""
    streams: dict[tuple[str, Stream], list[tuple[int, int, int]]] = {}
    for each in requests:
        stream = Stream(each.version, each.arm or "", each.role, each.status)
        streams.setdefault((each.model_id, stream), []).append((each.arrived_us, each.latency_us, len(each.rows)))
    spans: Spans = {}
    for (model_id, stream), facts in streams.items():
        for start, summary in _by_start(facts):
            for resolution in RESOLUTIONS:
                key = _Key(model_id, resolution, _down(start, resolution), *stream)
                spans.setdefault(key, Summary()).add(summary)
    return spans


def _by_start(facts: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, Summary]]:
    """(arrival, latency, rows), counted per five seconds: start and summary. One numpy pass for all."""
    arrived, latency, rows = np.array(facts, np.int64).T
    starts, which = np.unique(arrived // (_FINEST * 1_000_000) * _FINEST, return_inverse=True)
    size = len(starts)
    flat = np.bincount(which * BUCKETS + buckets_of(latency), minlength=size * BUCKETS)
    requests = np.bincount(which, minlength=size)
    carried = np.bincount(which, weights=rows, minlength=size)
    seconds = np.bincount(which, weights=latency, minlength=size) / 1e6
    for index, counts in enumerate(flat.reshape(size, BUCKETS)):
        yield int(starts[index]), Summary(int(requests[index]), int(carried[index]), float(seconds[index]), counts)


def _add_stored(connection: Connection, spans: Spans, source: str) -> None:
    """Add what is stored already. One query per model and resolution: what arrives together lies together."""
    starts: dict[tuple[str, int], list[int]] = {}
    for model_id, resolution, start, *_ in spans:
        starts.setdefault((model_id, resolution), []).append(start)
    columns = [_TABLE.c[name] for name in (*_Key._fields, *_SUMS)]
    for (model_id, resolution), those in starts.items():
        stored = connection.execute(
            select(*columns).where(
                _TABLE.c.model_id == model_id,
                _TABLE.c.resolution == resolution,
                _TABLE.c.start.between(min(those), max(those)),
                _TABLE.c.source == source,
            )
        )
        for row in stored:
            summary = spans.get(_Key(*row[: len(_Key._fields)]))
            if summary is not None:
                summary.add_stored(*row[len(_Key._fields) :])


def _cover(first: int, last: int, resolutions: Sequence[int]) -> list[Span]:
    if first >= last:
        return []
    coarse, *finer = resolutions
    inner_first, inner_last = -_down(-first, coarse), _down(last, coarse)
    if inner_first >= inner_last:
        return _cover(first, last, finer)
    inside = Span(coarse, inner_first, inner_last)
    return [*_cover(first, inner_first, finer), inside, *_cover(inner_last, last, finer)]


def _down(moment: float, step: int) -> int:
    return int(moment // step) * step
