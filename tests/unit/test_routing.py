"""Routes: what can serve and what cannot."""

from hypothesis import given
from hypothesis import strategies as st

from serving.routing import Route, why_invalid


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
