"""Reading the prediction log: windows of roll-ups, counts, and what retention removes."""

import random
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from serving.ids import first_id
from serving.shipper import Shipper
from serving.store import Database
from serving.store.predictions import count_predictions, delete_predictions_before
from serving.store.rollups import (
    FINE_SECONDS,
    RESOLUTIONS,
    Stream,
    add_rollups,
    covering,
    prune_rollups,
    read_rollups,
    roll_up,
)
from tests.predictions import a_payload, a_request, record_all

HOUR = 3600
NOW = 1_700_000_123
moments = st.integers(NOW - 50 * HOUR, NOW)


def a_count(arrived: float, **facts: object) -> SimpleNamespace:
    """A request as roll-ups see it."""
    given = {"model_id": "flights", "version": "3", "arm": None, "role": "answer", "status": 200, "latency_us": 1000}
    return SimpleNamespace(**{**given, **facts}, arrived_us=int(arrived * 1e6), rows=[(1.0, None, None)] * 2)


@given(moments, moments)
def test_a_window_is_covered_once_and_without_gaps(one: int, other: int) -> None:
    """Rates over a day would count an hour twice, or miss it."""
    since, until = sorted((one, other))
    spans = covering(since, until, NOW)
    for before, after in pairwise(spans):
        assert before.last == after.first
    for span in spans:
        assert span.resolution in RESOLUTIONS
        assert span.first % span.resolution == span.last % span.resolution == 0
        assert span.resolution > 5 or span.first >= NOW - FINE_SECONDS  # older ones may be pruned
    if since < until:
        assert since - 60 < spans[0].first <= since
        assert until <= spans[-1].last < until + 60
    assert sum((span.last - span.first) // span.resolution for span in spans) <= 50 + 2 * 59 + 2 * 11


def test_windows_say_what_arrived_in_them(database: Database) -> None:
    """Status, alerts and metrics would show other traffic than there was."""
    rng = random.Random(1)
    requests = [
        a_count(NOW - rng.uniform(0, 30 * HOUR), latency_us=int(rng.lognormvariate(8, 1)), version=rng.choice("34"))
        for _ in range(3000)
    ]
    with database.writing() as session:
        for at, source in ((0, "here/api-0"), (1500, "there/api-0")):
            for k in range(at, at + 1500, 500):
                add_rollups(session.connection(), roll_up(requests[k : k + 500]), source)
        add_rollups(session.connection(), roll_up([a_count(NOW - 1, model_id="other")]), "here/api-0")
    for since, until in ((NOW - 600, NOW), (NOW - 30 * HOUR, NOW - 5 * HOUR), (NOW - 26 * HOUR, NOW + 1)):
        with database.reading() as session:
            found = read_rollups(session, "flights", since, until, now=NOW)
        spans = covering(since, until, NOW)
        inside = [each for each in requests if spans[0].first <= each.arrived_us / 1e6 < spans[-1].last]
        for version in "34":
            own = [each.latency_us for each in inside if each.version == version]
            summary = found[Stream(version, "", "answer", 200)]
            assert (summary.n, summary.rows) == (len(own), 2 * len(own))
            assert summary.latency_sum == pytest.approx(sum(own) / 1e6)
            expected = np.quantile(own, 0.95, method="inverted_cdf") / 1e6
            assert summary.quantile(0.95) == pytest.approx(expected, rel=0.03)


def test_pruning_takes_fine_rows_only(database: Database) -> None:
    """The table would grow by thousands of rows an hour, or months of history would go with them."""
    with database.writing() as session:
        for model_id in ("a", "b"):
            add_rollups(
                session.connection(), roll_up([a_count(NOW - k * 60, model_id=model_id) for k in range(5)]), "here"
            )
        assert prune_rollups(session, 5, NOW - 150) == 4
    with database.reading() as session:
        left = session.connection().execute(text("SELECT resolution, sum(n) FROM rollup GROUP BY resolution"))
        assert {resolution: int(n) for resolution, n in left} == {5: 6, 60: 10, 3600: 10}


def test_old_predictions_go_and_young_ones_stay(database: Database, tmp_path: Path) -> None:
    """The disk would fill; or what drift and experiments still need would be gone."""
    hour_ago = first_id(int((time.time() - HOUR) * 1000))
    old = [hour_ago[:12] + k.to_bytes(4, "big") for k in range(4500)]
    record_all(
        tmp_path / "api-0",
        [
            *(a_request(id=each, client_key=each if each == old[0] else None) for each in old),
            a_request(client_key=b"k" * 16),
        ],
        [*(a_payload(id=each) for each in old[:600]), a_payload()],
    )
    Shipper(database, tmp_path, "here:8000").drain(30)
    bound = time.time() - HOUR / 2
    with database.reading() as session:
        assert count_predictions(session, "flights", 0, bound) == 4500
        assert count_predictions(session, "flights", bound, time.time() + 1) == 1
        assert count_predictions(session, "flights", 0, bound, version="4") == 0
        assert count_predictions(session, "other", 0, bound) == 0
    assert delete_predictions_before(database, bound) == 4500
    with database.reading() as session:
        connection = session.connection()
        for table, left in (("prediction", 1), ("prediction_alias", 1), ("payload_chunk", 1)):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == left
