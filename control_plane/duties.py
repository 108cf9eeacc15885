"""The loops of the control plane, each under a lease, so that of many control planes one does the work."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from control_plane.errors import LeaseHeld
from control_plane.services import Services
from control_plane.storage.aliases import pending_aliases
from control_plane.storage.leases import take_lease
from serving.errors import SwitchyardError
from serving.logs import logger

log = logger(__name__)

_LEASE_SECONDS = 30.0


def project_pending_aliases(services: Services, holder: str) -> int:
    """Bring MLflow's aliases up to date, if any are behind; returns how many were settled.

    Raises:
        LeaseHeld: another control plane is at it.
        RegistryUnreachable, DatabaseUnavailable: next time, then.
    """
    with services.database.reading() as session:
        if not pending_aliases(session):
            return 0
    with services.database.writing() as session:
        take_lease(session, "duty:alias-projection", holder, _LEASE_SECONDS)
    return services.versions.project_aliases()


@asynccontextmanager
async def on_duty(services: Services) -> AsyncIterator[None]:
    """Runs the loops while the block lasts."""
    holder = f"{socket.gethostname()}:{os.getpid()}"
    loop = asyncio.create_task(
        _every(
            services.settings.projection_interval, "alias-projection", lambda: project_pending_aliases(services, holder)
        )
    )
    try:
        yield
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def _every(seconds: float, duty: str, work: Callable[[], object]) -> None:
    """A duty goes on whatever happens to it; the same trouble is said once, and so is its end."""
    trouble = ""
    while True:
        said, trouble = trouble, ""
        try:
            await asyncio.to_thread(work)
        except LeaseHeld:
            pass
        except SwitchyardError as error:
            trouble = type(error).__name__
            _say_once(said, trouble, duty, error.detail)
        except Exception:
            trouble = "unexpected"
            log.exception("duty failed", duty=duty)
        if said and not trouble:
            log.info("duty works again", duty=duty)
        await asyncio.sleep(seconds)


def _say_once(said: str, trouble: str, duty: str, detail: str) -> None:
    if said != trouble:
        log.warning("duty waits", duty=duty, problem=detail)
