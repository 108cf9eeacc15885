"""Routes: what can serve and what cannot."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routing import Route, RoutingTable, TrafficSplitter, why_invalid


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5).filter(any))
def test_shares_of_a_whole_are_valid(parts: list[int]) -> None:
    """Any split that adds up is somebody's canary."""
    routes = [Route(str(number), part / sum(parts)) for number, part in enumerate(parts)]
    assert why_invalid(routes) is None


@given(st.floats(allow_nan=True, allow_infinity=True).filter(lambda weight: weight != 1))
def test_a_single_route_takes_everything_or_is_refused(weight: float) -> None:
    """Requests without a route would be lost."""
    assert why_invalid([Route("1", weight)])


def test_nothing_is_no_route() -> None:
    """A model that serves is never left without a version."""
    assert "at least one route" in (why_invalid([]) or "")


@pytest.mark.parametrize(
    ("salt", "unit", "position"),
    [
        ("seed", "a", 0.0505), ("seed", "b", 0.2696), ("foo", "ab", 0.2575), ("foo", "def", 0.2019),
        ("90850943850283058242805", "123", 0.7516), ("()**(%$##$%#$#", '___)((*":&', 0.0128),
        ("89123klj", "8952klfjas09ujkasdf", 0.124),
    ],
)  # fmt: skip
def test_units_lie_where_growthbook_puts_them(salt: str, unit: str, position: float) -> None:
    """Assignments could not be checked with anybody else's tools, and would move with the next release."""
    assert TrafficSplitter([Route("1", 1.0)], salt).position(unit) == position


@given(st.text(max_size=40), st.text(max_size=20), st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_a_growing_share_moves_nobody_back(unit: str, salt: str, one: float, other: float) -> None:
    """Users would flip between versions with each stage of a rollout."""
    small, large = sorted((one, other))
    before = TrafficSplitter([Route("9", 1 - small), Route("10", small)], salt).choose(unit)
    after = TrafficSplitter([Route("10", large), Route("9", 1 - large)], salt).choose(unit)
    assert after == "10" or before == "9"


def test_shares_are_what_was_asked_for() -> None:
    """A canary of 5 % would get another share of the traffic."""
    splitter = TrafficSplitter([Route("1", 0.7), Route("2", 0.25), Route("3", 0.05), Route("4", 0.0)], "flights")
    chosen = Counter(splitter.choose(f"user-{number}") for number in range(20_000))
    assert set(chosen) == {"1", "2", "3"}
    for version, share in (("1", 0.7), ("2", 0.25), ("3", 0.05)):
        assert abs(chosen[version] - 20_000 * share) < 5 * math.sqrt(20_000 * share * (1 - share))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda each: st.dictionaries(st.text(), each)))
def test_what_is_no_table_is_refused(nonsense: object) -> None:
    """A damaged snapshot would stop the HTTP process from starting."""
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        RoutingTable.from_json({"generation": 1, "models": {"m": nonsense}})
