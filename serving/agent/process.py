"""The agent at work: what the last life knew is served first, then the database is followed and workers are led.

It alone of all that serve looks into the database, and can do without: the last good table stays in force.
"""

import asyncio
import multiprocessing
import os
import signal
import time
from contextlib import suppress

from serving.agent.database import DatabaseLink
from serving.agent.files import ReplicaFiles
from serving.agent.lookups import Lookups
from serving.agent.options import AgentOptions
from serving.agent.orders import Orders
from serving.agent.publisher import Publisher
from serving.agent.reports import Reports
from serving.agent.standing import Standing
from serving.agent.tables import TableServer
from serving.agent.workers import Workers
from serving.logs import logger

_POLL = 0.25
_LOOK_AGAIN = 1.0
_GOODBYE = 1.0

log = logger(__name__)


async def live(options: AgentOptions) -> None:
    """The agent's life in the running event loop: until SIGTERM, or until this process's parent is gone."""
    agent = Agent(options)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.stop)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def parent_gone() -> None:
            loop.remove_reader(parent.sentinel)
            agent.stop()

        loop.add_reader(parent.sentinel, parent_gone)
    await agent.run()


class Agent:
    """Make and run it inside the running event loop."""

    def __init__(self, options: AgentOptions) -> None:
        self._files = files = ReplicaFiles(options.replica_folder)
        desired, slots = files.read_table()
        self._standing = Standing(len(options.worker_addresses), files.read_proven())
        self._standing.follow(desired, None, time.monotonic())
        self._something = asyncio.Event()
        self._stopping = asyncio.Event()
        self._kernel_parent = os.getppid()
        self._lookups = Lookups(DatabaseLink(options.database_url, options.database_timeout))
        self._tables = TableServer(options.agent_address, options.api_processes, self._lookups.take)
        self._publisher = Publisher(self._standing, self._tables, files, slots, options.artifact_folder)
        self._workers = Workers(options.worker_addresses, self._worker_changed)
        self._orders = Orders(
            self._standing, self._workers, options.memory_budget_mb, options.load_timeout, self._something.set
        )
        self._database = DatabaseLink(options.database_url, options.database_timeout)
        self._reports = Reports(self._database, self._standing, self._workers, self._tables, options)

    def stop(self) -> None:
        """Begin to end."""
        self._stopping.set()
        self._something.set()

    async def run(self) -> None:
        """Until `stop`."""
        await self._tables.start()
        self._lookups.start()
        self._publisher.publish()
        self._workers.start()
        log.info("agent ready", generation=self._standing.desired.generation, models=len(self._standing.desired.models))
        loops = [asyncio.create_task(self._lead_workers()), asyncio.create_task(self._follow_database())]
        await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)  # by `stop`, or by a fault of ours
        self.stop()
        await self._end(loops)
        log.info("agent stopped")

    async def _lead_workers(self) -> None:
        while not self._stopping.is_set():
            self._something.clear()
            self._publisher.publish()
            await self._publisher.keep_files()
            self._orders.give()
            await _pause(self._something, _LOOK_AGAIN)

    async def _follow_database(self) -> None:
        while not self._stopping.is_set():
            if await self._reports.read():
                self._something.set()
            if not self._stopping.is_set():
                await self._reports.write()
            await _pause(self._stopping, _POLL)
            if self._is_orphan():
                self.stop()

    def _is_orphan(self) -> bool:
        """Whether the fork server has ended: our parent takes us for dead then, and has started a successor."""
        return os.getppid() != self._kernel_parent

    def _worker_changed(self, worker: int) -> None:
        line = self._workers.lines.get(worker)
        if line is None:
            self._standing.worker_gone(worker)
        elif line.held is not None:
            self._standing.worker_holds(worker, line.held, loading=line.at)
            self._standing.doubt(self._files.read_left_out(worker))
        self._something.set()

    async def _end(self, loops: list[asyncio.Task[None]]) -> None:
        self._tables.close()
        await self._lookups.close()
        if not self._is_orphan():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reports.say_goodbye(), _GOODBYE)
        await self._orders.close()
        await self._workers.close()
        faults = [each.exception() for each in loops if each.done()]
        for each in loops:
            each.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        self._database.close()
        for fault in faults:
            if fault is not None:
                raise fault  # not hidden: the process ends with it, and is started again


async def _pause(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
