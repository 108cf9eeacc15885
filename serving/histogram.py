"""Histograms of latencies that can be added up: 256 buckets, each 1.06 times as wide as the one before. Pure.

Bucket k holds latencies from 50 us * 1.06^k to 50 us * 1.06^(k+1); the last ends at 150 s. What lies outside counts in
the first or last bucket. A quantile is the geometric middle of its bucket, so it is off by at most sqrt(1.06) - 1 =
2.96 % of the order statistic. Quantiles of several histograms come from the sum of their counts, never from averages.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
"""How many latencies fell into each bucket: an array of BUCKETS integers."""

BUCKETS = 256
GROWTH = 1.06
FIRST_US = 50.0
"""Lower bound of the first bucket, in microseconds."""

_LOG_GROWTH = math.log(GROWTH)


def empty() -> Counts:
    """A histogram of nothing."""
    return np.zeros(BUCKETS, np.int64)


def buckets_of(latencies_us: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of each latency, given in microseconds."""
    widths = np.log(np.maximum(np.asarray(latencies_us, np.float64), 1.0) / FIRST_US) / _LOG_GROWTH
    clipped: npt.NDArray[np.int64] = np.clip(np.floor(widths), 0, BUCKETS - 1).astype(np.int64)
    return clipped


def count(latencies_us: Sequence[int] | npt.NDArray[np.int64]) -> Counts:
    """The histogram of these latencies, given in microseconds."""
    return np.bincount(buckets_of(latencies_us), minlength=BUCKETS)


def pack(counts: Counts) -> bytes:
    """For the database: the first used bucket (one byte), then the counts up to the last used one (u32 each)."""
    used = np.flatnonzero(counts)
    if not used.size:
        return b"\0"
    return bytes((int(used[0]),)) + counts[used[0] : used[-1] + 1].astype("<u4").tobytes()


def add_packed(packed: bytes, counts: Counts) -> None:
    """Add what `pack` made to `counts`, in place."""
    part = np.frombuffer(packed, "<u4", offset=1)
    counts[packed[0] : packed[0] + part.size] += part


def merge(packed: Iterable[bytes]) -> Counts:
    """The sum of what `pack` made."""
    counts = empty()
    for each in packed:
        add_packed(each, counts)
    return counts


def quantile(counts: Counts, q: float) -> float | None:
    """The latency in seconds that a share `q` (0 to 1) does not exceed: the order statistic ceil(q n), within 3 %.

    None of nothing.
    """
    total = int(counts.sum())
    if not total:
        return None
    bucket = int(np.searchsorted(np.cumsum(counts), max(1, math.ceil(q * total))))
    return float(FIRST_US * GROWTH ** (bucket + 0.5) / 1e6)
