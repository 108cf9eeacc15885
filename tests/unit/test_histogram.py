"""Histograms of latencies: what they say of quantiles, and that they add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.histogram import BUCKETS, FIRST_US, GROWTH, count, empty, merge, pack, quantile

LARGEST_US = int(FIRST_US * GROWTH**BUCKETS)
latencies = st.lists(st.integers(int(FIRST_US), LARGEST_US), min_size=1, max_size=300)


@given(latencies, st.floats(0.0, 1.0))
def test_a_quantile_is_within_three_percent_of_the_order_statistic(values: list[int], q: float) -> None:
    """A p99 on the status page would be another one than the clients see."""
    found = quantile(count(values), q)
    expected = np.quantile(values, q, method="inverted_cdf") / 1e6
    assert found is not None
    assert abs(found / expected - 1) <= 0.03


@given(latencies, latencies)
def test_histograms_add_up(some: list[int], others: list[int]) -> None:
    """Percentiles over several windows or replicas would be wrong."""
    together = merge([pack(count(some)), pack(count(others))])
    assert (together == count(some + others)).all()


def test_nothing_has_no_quantile_and_packs_to_nothing() -> None:
    """A model without traffic must not show a latency of zero."""
    assert quantile(empty(), 0.5) is None
    assert (merge([pack(empty())]) == empty()).all()


@pytest.mark.parametrize(("latency_us", "bucket"), [(0, 0), (1, 0), (10**12, BUCKETS - 1)])
def test_what_lies_outside_counts_at_the_ends(latency_us: int, bucket: int) -> None:
    """A request that took an hour would vanish from the counts."""
    assert count([latency_us])[bucket] == 1


def test_packed_size_is_that_of_the_used_buckets() -> None:
    """Roll-ups of a year would not fit beside the predictions of a month."""
    assert len(pack(count([1000] * 50 + [1100]))) <= 1 + 4 * 4
