"""The holder of a lease that writes routes until it is killed: the product's own functions, in a loop."""

import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection

from control_plane.errors import FenceLost, LeaseHeld
from control_plane.storage.leases import Lease, take_lease
from control_plane.storage.routes import lease_name, write_routes
from serving.routing import Route
from serving.store import Database, ModelVersionRow, open_database

MODEL = "contested"
LEASE_SECONDS = 0.25
TIMEOUT = 20.0
TOOK, WROTE, FENCED = "took", "wrote", "fenced"
"""First words of a holder's messages: (TOOK, token), (WROTE, token, revision, holder), (FENCED,)."""

_ASK_EVERY = 0.01
_MOST_BETWEEN_WRITES = 0.006


def prepare_model(database: Database) -> None:
    """Two kept versions, so that there is something to route to."""
    now = datetime.now(UTC)
    with database.writing() as session:
        for version in ("1", "2"):
            session.add(
                ModelVersionRow(
                    model_id=MODEL,
                    version=version,
                    digest=version * 64,
                    size_bytes=1,
                    identity=f"models:/m-{MODEL}-{version}",
                    tags={},
                    metrics={},
                    created_at=now,
                    kept_at=now,
                )
            )


def hold_and_write(url: str, holder: str, connection: Connection) -> None:
    """Wait for the lease, write one split of the traffic after the other, renew in between; start again whenever the lease was lost."""
    database = open_database(url, TIMEOUT)
    while True:
        lease = take(database, holder)
        if lease is None:
            time.sleep(_ASK_EVERY)
            continue
        with suppress(FenceLost):
            while lease:
                connection.send((TOOK, lease.token))
                write_for(LEASE_SECONDS / 3, database, lease, connection)
                lease = take(database, holder)
        connection.send((FENCED,))


def take(database: Database, holder: str) -> Lease | None:
    """The lease, taken or renewed; None while somebody else holds it."""
    try:
        with database.writing() as session:
            return take_lease(session, lease_name(MODEL), holder, LEASE_SECONDS)
    except LeaseHeld:
        return None


def write_for(seconds: float, database: Database, lease: Lease, connection: Connection) -> None:
    """Write random splits of the traffic, each acknowledged over the pipe once it is committed.

    Raises:
        FenceLost: the lease is another's by now, or nobody's.
    """
    until = time.monotonic() + seconds
    while True:
        # As a real holder does: or else it would stand inside a transaction whenever it is killed or frozen.
        time.sleep(random.uniform(0, _MOST_BETWEEN_WRITES))
        weight = random.randrange(101) / 100
        routes = [Route("1", weight), Route("2", 1 - weight)]
        aliases = {"champion": champion_of(weight)}
        with database.writing() as session:
            revision = write_routes(session, lease, MODEL, routes, reason="contest", aliases=aliases)
        connection.send((WROTE, lease.token, revision, lease.holder))
        # After the write, not before: whoever was frozen in the pause shall try to write, and be refused.
        if time.monotonic() > until:
            return


def champion_of(weight_of_1: float) -> str:
    """The alias that goes with a split: written in the same transaction, it must never tell of another one."""
    return "1" if weight_of_1 > 0.5 else "2"
