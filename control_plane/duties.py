"""The loops of the control plane, each under a lease, so that of many control planes one does the work."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from control_plane.errors import LeaseHeld
from control_plane.monitoring.health import Probe
from control_plane.services import Services
from control_plane.storage.aliases import pending_aliases
from control_plane.storage.leases import take_lease
from serving.errors import SwitchyardError
from serving.logs import logger, working_on

log = logger(__name__)

_LEASE_SECONDS = 30.0
_LOOK_FOR_CHANGES_SECONDS = 1.0  # for those of a control plane that was killed; our own are told of at once
_LOOK_FOR_PROBES_SECONDS = 0.5
_PROBES_AT_ONCE = 8
# Steps that copy from a registry that hangs must leave threads to the other models' changes.
_THREADS = 32

InThread = Callable[..., Awaitable[Any]]
"""Calls a function in a thread of the duties."""


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


def due_probes(services: Services, holder: str) -> list[Probe]:
    """The probes that are due, if it is ours to ask them.

    Raises:
        LeaseHeld: another control plane asks them.
        DatabaseUnavailable: next time, then.
    """
    due = services.health.due()
    if due:
        with services.database.writing() as session:
            take_lease(session, "duty:health", holder, _LEASE_SECONDS)
    return due


@asynccontextmanager
async def on_duty(services: Services) -> AsyncIterator[None]:
    """Runs the loops while the block lasts."""
    holder = f"{socket.gethostname()}:{os.getpid()}"
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="duty")
    in_thread = partial(asyncio.get_running_loop().run_in_executor, threads)

    async def project() -> None:
        await in_thread(project_pending_aliases, services, holder)

    async def probe() -> None:
        due = await in_thread(due_probes, services, holder)
        found = await asyncio.gather(*(services.health.ask(each) for each in due[:_PROBES_AT_ONCE]))
        for each in found:
            await in_thread(services.health.keep, each)

    changes = ChangeDuty(services, in_thread)
    loops = [
        asyncio.create_task(_every(services.settings.projection_interval, "alias-projection", project)),
        asyncio.create_task(_every(_LOOK_FOR_PROBES_SECONDS, "health", probe)),
        asyncio.create_task(_every(_LOOK_FOR_CHANGES_SECONDS, "changes", changes.look, wake=changes.woken)),
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await changes.stop()
        # What a thread is at, it ends: whoever closes the database next must be the last to use it.
        await asyncio.to_thread(threads.shutdown, cancel_futures=True)


class ChangeDuty:
    """Advances every change that has not ended: one task each, so that none waits for another model's."""

    def __init__(self, services: Services, in_thread: InThread) -> None:
        self.woken = asyncio.Event()
        self._services = services
        self._in_thread = in_thread
        self._tasks: dict[str, asyncio.Task[None]] = {}
        loop = asyncio.get_running_loop()
        services.changes.on_new(lambda: _tell(loop, self.woken))

    async def look(self) -> None:
        """Begin to advance those that nobody of ours is at.

        Raises:
            DatabaseUnavailable: next time, then.
        """
        self._tasks = {change_id: task for change_id, task in self._tasks.items() if not task.done()}
        for change_id, model_id in await self._in_thread(self._services.changes.under_way):
            if change_id not in self._tasks:
                self._tasks[change_id] = asyncio.create_task(self._drive(change_id, model_id))

    async def stop(self) -> None:
        """Leave what is under way as it stands: each step has persisted, and another control plane goes on."""
        self._services.changes.on_new(lambda: None)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _drive(self, change_id: str, model_id: str) -> None:
        """Until it has ended, or cannot go on just now: the next look begins anew."""
        executor = self._services.executor
        with working_on(change_id=change_id, model_id=model_id):
            holding = asyncio.create_task(self._hold(model_id, asyncio.current_task()))
            try:
                # First of all: what another one is at must not be copied from the registry here as well.
                await self._in_thread(executor.hold, model_id)
                going_on = True
                while going_on:
                    going_on = await self._in_thread(executor.advance, change_id)
                    await asyncio.sleep(executor.pace.poll if going_on else 0)
            except LeaseHeld:
                pass  # another control plane advances it
            except SwitchyardError as error:
                log.warning("a change waits", problem=error.detail)
            except Exception:
                log.exception("a change waits")
            finally:
                holding.cancel()
                with suppress(asyncio.CancelledError):
                    await holding

    async def _hold(self, model_id: str, driver: asyncio.Task[Any] | None) -> None:
        """Keep the lease while a step takes longer than it lasts, as copying a large version does."""
        executor = self._services.executor
        while True:
            await asyncio.sleep(executor.pace.lease / 3)
            try:
                await self._in_thread(executor.hold, model_id)
            except LeaseHeld:
                if driver is not None:
                    driver.cancel()
                return
            except SwitchyardError as error:
                log.warning("a lease could not be renewed", problem=error.detail)


def _tell(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has ended: whoever comes next finds the change on record
        loop.call_soon_threadsafe(woken.set)


async def _every(
    seconds: float, duty: str, work: Callable[[], Awaitable[None]], wake: asyncio.Event | None = None
) -> None:
    """A duty goes on whatever happens to it; the same trouble is said once, and so is its end."""
    trouble = ""
    while True:
        said, trouble = trouble, ""
        try:
            await work()
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
        await _sleep(seconds, wake)


async def _sleep(seconds: float, wake: asyncio.Event | None) -> None:
    if wake is None:
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        await asyncio.wait_for(wake.wait(), seconds)
    wake.clear()


def _say_once(said: str, trouble: str, duty: str, detail: str) -> None:
    if said != trouble:
        log.warning("duty waits", duty=duty, problem=detail)
