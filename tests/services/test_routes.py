"""Leases and the fenced write of routes, on both databases."""

import threading

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from control_plane.errors import FenceLost, LeaseHeld, RoutesInvalid
from control_plane.storage.aliases import confirm_alias, pending_aliases, settled_aliases, want_aliases, wanted_aliases
from control_plane.storage.leases import Lease, release_lease, take_lease
from control_plane.storage.routes import lease_name, read_generation, read_routes, write_routes
from control_plane.storage.tables import LeaseRow, RouteWriteRow
from serving.routing import Route
from serving.store import Database, RouteRow
from serving.store.clock import database_now_ms
from tests.rows import kept_version


@pytest.fixture
def prepared(database: Database) -> Database:
    """A database with three kept versions of the model `flights`."""
    with database.writing() as session:
        session.add_all([kept_version("flights", number) for number in ("1", "2", "3")])
    return database


def take(database: Database, holder: str, model_id: str = "flights", seconds: float = 60) -> Lease:
    with database.writing() as session:
        return take_lease(session, lease_name(model_id), holder, seconds)


def expire(database: Database) -> None:
    """As if time had passed."""
    with database.writing() as session:
        session.connection().execute(text("UPDATE lease SET expires_at_ms = 1"))


def write(database: Database, lease: Lease, *routes: Route, **aliases: str | None) -> int:
    with database.writing() as session:
        return write_routes(session, lease, "flights", routes, reason="test", aliases=aliases)


def serving(database: Database) -> dict[str, list[Route]]:
    with database.reading() as session:
        return read_routes(session)


def test_routes_generation_record_and_aliases_are_written_together(prepared: Database) -> None:
    """A replica that sees the new generation must find the new routes, and the record must say who and why."""
    lease = take(prepared, "engine")
    assert write(prepared, lease, Route("1", 1.0), champion="1") == 1
    assert write(prepared, lease, Route("1", 0.75), Route("2", 0.25)) == 2
    assert serving(prepared) == {"flights": [Route("1", 0.75), Route("2", 0.25)]}
    with prepared.reading() as session:
        assert read_generation(session) == 2
        record = session.get_one(RouteWriteRow, ("flights", 2))
        assert (record.routes, record.holder, record.token) == ({"1": 0.75, "2": 0.25}, "engine", lease.token)
        assert wanted_aliases(session) == {"flights": {"champion": "1"}}


def test_a_holder_that_was_overtaken_cannot_write(prepared: Database) -> None:
    """A process that was asleep while a rollback took over must not put the bad version back."""
    old = take(prepared, "promotion")
    write(prepared, old, Route("2", 1.0))
    expire(prepared)
    new = take(prepared, "rollback")
    assert new.token > old.token
    with pytest.raises(FenceLost, match="somebody else took over"):
        write(prepared, old, Route("3", 1.0))
    write(prepared, new, Route("1", 1.0))
    with pytest.raises(FenceLost):
        write(prepared, old, Route("3", 1.0))
    assert serving(prepared) == {"flights": [Route("1", 1.0)]}


def test_an_expired_lease_cannot_write_even_if_nobody_took_over(prepared: Database) -> None:
    """Between the check of somebody who is about to take over and his write, the old one must be silent already."""
    lease = take(prepared, "engine")
    expire(prepared)
    with pytest.raises(FenceLost):
        write(prepared, lease, Route("1", 1.0))
    assert serving(prepared) == {}


def test_the_lease_of_another_model_does_not_count(prepared: Database) -> None:
    """A mistake in the caller must not become traffic on the wrong model."""
    with pytest.raises(FenceLost):
        write(prepared, take(prepared, "engine", model_id="other"), Route("1", 1.0))


def test_the_token_of_the_same_holder_after_expiry_is_a_new_one(prepared: Database) -> None:
    """A holder that lost its lease and got it back must not go on with what it began before."""
    first = take(prepared, "engine")
    assert take(prepared, "engine").token == first.token
    expire(prepared)
    second = take(prepared, "engine")
    assert second.token == first.token + 1
    with pytest.raises(FenceLost):
        write(prepared, first, Route("1", 1.0))


def test_a_lease_in_force_is_refused_and_says_whose_it_is(prepared: Database) -> None:
    """Whoever is turned away needs to know by whom and how long."""
    held = take(prepared, "engine", seconds=50)
    with pytest.raises(LeaseHeld) as caught:
        take(prepared, "other")
    assert caught.value.holder == "engine"
    assert 40 < caught.value.seconds_left <= 50
    with prepared.writing() as session:
        release_lease(session, held)
    assert take(prepared, "other").token == held.token + 1


def test_of_many_that_want_a_lease_at_once_one_gets_it(prepared: Database) -> None:
    """Two drivers of one change would each undo the other's work."""
    won: list[str] = []
    start = threading.Barrier(8)

    def compete(name: str) -> None:
        start.wait()
        try:
            take(prepared, name)
        except LeaseHeld:
            return
        won.append(name)

    threads = [threading.Thread(target=compete, args=(f"driver-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    with prepared.reading() as session:
        assert session.get_one(LeaseRow, lease_name("flights")).holder == won[0]


@pytest.mark.parametrize(
    ("routes", "problem"),
    [
        ([], "at least one route"),
        ([Route("1", 0.5)], "add up to 1"),
        ([Route("1", 0.5), Route("1", 0.5)], "each version may stand there once"),
        ([Route("1", 1.5), Route("2", -0.5)], "between 0 and 1"),
        ([Route("1", float("nan")), Route("2", 1.0)], "between 0 and 1"),
        ([Route("1", 0.5), Route("9", 0.5)], "not prepared yet: version 9"),
    ],
)
def test_routes_that_cannot_serve_are_refused_and_nothing_changes(
    prepared: Database, routes: list[Route], problem: str
) -> None:
    """Traffic must never be left without a version, or sent to one that is not there."""
    lease = take(prepared, "engine")
    write(prepared, lease, Route("1", 1.0))
    with pytest.raises(RoutesInvalid, match=problem):
        write(prepared, lease, *routes)
    assert serving(prepared) == {"flights": [Route("1", 1.0)]}
    with prepared.reading() as session:
        assert read_generation(session) == 1


def test_the_database_itself_refuses_a_route_to_what_is_not_kept(prepared: Database) -> None:
    """Whoever goes around the one function still cannot route to a version that is not there."""
    write(prepared, take(prepared, "engine"), Route("1", 1.0))
    with pytest.raises(IntegrityError), prepared.writing() as session:
        session.add(RouteRow(model_id="flights", version="77", weight=0.0))


@budget(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.integers(1, 1000), min_size=1, max_size=3))
def test_any_shares_that_add_up_are_kept_as_they_are(prepared: Database, parts: list[int]) -> None:
    """A third is no finite fraction, and must still be a valid share."""
    routes = [Route(str(number + 1), part / sum(parts)) for number, part in enumerate(parts)]
    write(prepared, take(prepared, "engine"), *routes)
    assert sorted(serving(prepared)["flights"], key=lambda route: route.version) == routes


def test_previous_is_written_before_champion(prepared: Database) -> None:
    """Whoever reads between two writes to MLflow must never find the old champion nowhere."""
    write(prepared, take(prepared, "engine"), Route("2", 1.0), champion="2", previous="1", challenger=None)
    with prepared.reading() as session:
        assert [row.alias for row in pending_aliases(session)] == ["challenger", "previous", "champion"]


def test_a_confirmation_that_was_overtaken_does_not_count(prepared: Database) -> None:
    """A slow write of the old alias must not hide that a newer one is still to be written."""
    lease = take(prepared, "engine")
    write(prepared, lease, Route("1", 1.0), champion="1")
    with prepared.reading() as session:
        (slow,) = pending_aliases(session)
    write(prepared, lease, Route("2", 1.0), champion="2")
    with prepared.writing() as session:
        assert not confirm_alias(session, slow)
    with prepared.reading() as session:
        (still,) = pending_aliases(session)
        assert still.wanted == "2"
    with prepared.writing() as session:
        assert confirm_alias(session, still)
        want_aliases(session, "flights", {"champion": "2"})
    with prepared.reading() as session:
        assert pending_aliases(session) == []
        assert [row.written for row in settled_aliases(session)] == ["2"]


def test_the_databases_clock_moves_within_a_transaction(prepared: Database) -> None:
    """PostgreSQL's now() stands still inside a transaction: a long one would never see a lease expire."""
    with prepared.reading() as session:
        first = database_now_ms(session)
        assert any(database_now_ms(session) > first for _ in range(100_000))
