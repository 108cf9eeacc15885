"""What the agent has the workers do: loads, unloads and configurations, as decided, each to its end."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from serving.agent.reconcile import Configure, Load, Unload, decide
from serving.agent.standing import Standing
from serving.agent.workers import WorkerLine, Workers, held_from
from serving.logs import logger

LOAD_TIMEOUT = 600.0
"""Seconds that a worker gets to load and warm a version."""
_UNLOAD_TIMEOUT = 30.0

log = logger(__name__)


class Orders:
    """Different workers in parallel, each worker one load or unload after the other."""

    def __init__(
        self, standing: Standing, workers: Workers, memory_budget_mb: float, on_done: Callable[[], None]
    ) -> None:
        """`on_done` is called when an order has ended, so that the next can be given."""
        self._standing = standing
        self._workers = workers
        self._memory_budget_mb = memory_budget_mb
        self._on_done = on_done
        self._tasks: set[asyncio.Task[None]] = set()

    def give(self) -> None:
        """Have every worker that is free do what it should do next."""
        lines = self._workers.lines
        situation = self._standing.situation(
            busy={worker for worker, line in lines.items() if line.at is not None},
            rss_mb={worker: line.rss_mb() or 0.0 for worker, line in lines.items()},
            configured={worker: line.configured for worker, line in lines.items()},
            memory_budget_mb=self._memory_budget_mb,
            now=time.monotonic(),
        )
        decision = decide(situation)
        for key, refusal in decision.refusals.items():
            log.warning("version given up", model_id=key[0], version=key[1], cause=refusal.cause, reason=refusal.reason)
        self._standing.refuse(decision.refusals)
        for configure in decision.configures:
            _configure(lines[configure.worker], configure)
        for unload in decision.unloads:
            self._begin(lines[unload.worker], unload)
        for load in decision.loads:
            self._begin(lines[load.worker], load)

    async def close(self) -> None:
        """Wait for no worker any more; they end what they are at."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, line: WorkerLine, action: Load | Unload) -> None:
        line.at = action.key
        work = self._load(line, action) if isinstance(action, Load) else self._unload(line, action)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, line: WorkerLine, load: Load) -> None:
        facts = {"model_id": load.key[0], "version": load.key[1], "worker": load.worker, "attempt": load.attempt}
        log.info("loading", **facts)
        order = {"op": "load", **self._standing.to_load(load.key, load.digest)}
        try:
            report = await asyncio.wait_for(line.order(order), LOAD_TIMEOUT)
        except TimeoutError:
            report = {"ok": False, "reason": f"it was not loaded within {LOAD_TIMEOUT:g} s"}
        if report is None:
            # A worker that leaves in good order, for a successor, was not ended by the version.
            again = line.leaving or self._standing.load_lost(load, time.monotonic())
            log.warning("a worker ended while it was loading", again=again, **facts)
        else:
            self._take_report(load, report, facts)
        line.configured.pop(load.key[0], None)  # said once more: it may have changed while the worker was loading
        self._finish(line)

    def _take_report(self, load: Load, report: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        reason = str(report.get("reason") or "the worker gave no reason")
        if report.get("ok"):
            try:
                held = held_from(report["held"])
            except (KeyError, TypeError, ValueError) as problem:
                reason = f"the worker's report cannot be read ({problem!r})"
            else:
                self._standing.load_succeeded(load, held)
                log.info("loaded", seconds=round(held.load_seconds, 3), engine=held.engine, **facts)
                return
        # Not its text, which may quote a value of the model's example; the database has it for whoever asked.
        log.error("version cannot be loaded", **facts)
        self._standing.load_failed(load, reason, time.monotonic())

    async def _unload(self, line: WorkerLine, unload: Unload) -> None:
        facts = {"model_id": unload.key[0], "version": unload.key[1], "worker": unload.worker}
        log.info("unloading", **facts)
        order = {"op": "unload", "model_id": unload.key[0], "version": unload.key[1]}
        try:
            await asyncio.wait_for(line.order(order), _UNLOAD_TIMEOUT)
        except TimeoutError:
            log.warning("a worker did not say that it has unloaded", **facts)
        self._finish(line)

    def _finish(self, line: WorkerLine) -> None:
        line.at = None
        self._on_done()


def _configure(line: WorkerLine, configure: Configure) -> None:
    line.configured[configure.model_id] = (configure.batch_size, configure.timeout)
    line.order(
        {
            "op": "configure",
            "model_id": configure.model_id,
            "batch_size": configure.batch_size,
            "timeout": configure.timeout,
        }
    )
