"""What the agent has the workers do: loads, unloads and configurations, as decided, each to its end."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from serving.agent.reconcile import Cause, Configure, Load, Unload, decide
from serving.agent.standing import Standing
from serving.agent.workers import WorkerLine, Workers, held_from
from serving.load_journal import took_too_long
from serving.logs import logger

_PATIENCE = 5.0
"""Times the deadline of a load: a worker that has just started loads what it had before, and then what we say."""
_UNLOAD_TIMEOUT = 30.0
_LOOK_AT_MEMORY = 0.05

log = logger(__name__)


class Orders:
    """Different workers in parallel, each worker one load or unload after the other."""

    def __init__(
        self,
        standing: Standing,
        workers: Workers,
        memory_budget_mb: float,
        load_timeout: float,
        on_done: Callable[[], None],
    ) -> None:
        """`load_timeout`: seconds. `on_done` is called when an order has ended, so that the next can be given."""
        self._standing = standing
        self._workers = workers
        self._memory_budget_mb = memory_budget_mb
        self._load_timeout = load_timeout
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
        began = time.monotonic()
        answer = line.order({"op": "load", **self._standing.to_load(load.key, load.digest)})
        too_large = await self._watch(line, load, answer)
        report = await answer if answer.done() else None
        now = time.monotonic()
        if too_large is not None:
            log.error("version takes too much memory, its worker was ended", reason=too_large, **facts)
            self._standing.load_failed(load, too_large, now, cause=Cause.TOO_LARGE, ended=True)
        elif not answer.done():
            self._standing.load_failed(load, f"it was not loaded within {now - began:.0f} s", now)
        elif report is not None:
            self._take_report(load, report, facts)
        elif now - began >= self._load_timeout and not line.leaving:
            # Not even its own loop went on: it was killed for that, and could not say so.
            self._standing.load_failed(load, took_too_long(self._load_timeout), now, ended=True)
        else:
            # A worker that leaves in good order, for a successor, was not ended by the version.
            again = line.leaving or self._standing.load_lost(load, now)
            log.warning("a worker ended while it was loading", again=again, **facts)
        line.configured.pop(load.key[0], None)  # said once more: it may have changed while the worker was loading
        self._finish(line)

    async def _watch(self, line: WorkerLine, load: Load, answer: "asyncio.Future[Any]") -> str | None:
        """Until it is answered, or patience ends. Why the version is too large, if the worker had to be killed for it.

        That is only ever the spare: what it has proven is no larger in others.
        """
        until = time.monotonic() + _PATIENCE * self._load_timeout
        before = line.rss_mb() or 0.0
        while not answer.done() and time.monotonic() < until:
            await asyncio.wait([answer], timeout=_LOOK_AT_MEMORY)
            rss = line.rss_mb() if load.worker == self._standing.spare and not answer.done() else None
            reason = None if rss is None else self._standing.why_too_large(load, before, rss, self._memory_budget_mb)
            if reason is not None:
                line.kill()
                return reason
        return None

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
        self._standing.load_failed(load, reason, time.monotonic(), ended=bool(report.get("ended")))

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
