"""The inference worker: LitServe starts it, our own loop runs in it, on a unix socket instead of LitServe's queues."""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from litserve import LitAPI
from litserve.loops.base import LitLoop

from serving.channel import Hello
from serving.logs import configure_logging, logger

_PR_SET_PDEATHSIG = 1
_LOAD_GRACE = 5.0
"""Seconds beyond a load's deadline that the worker has to give it up by itself, before it is killed."""

log = logger(__name__)


def end_with_parent(parent: int) -> None:
    """Have SIGTERM sent to this process when its parent, process `parent`, ends in whatever way. Linux only.

    The kernel goes by the parent's thread, so a parent must start such children from its main thread.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def join_our_log() -> None:
    """Send LitServe's log where ours goes; it gives itself a handler of its own on import and on every run."""
    theirs = logging.getLogger("litserve")
    theirs.handlers.clear()
    theirs.propagate = True
    theirs.setLevel(logging.WARNING)


class WorkerAPI(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """What LitServe calls in a worker before it hands over to the loop."""

    def __init__(self, loop: LitLoop, log_level: str) -> None:
        super().__init__()
        self.loop = loop
        self._log_level = log_level

    def setup(self, device: str) -> None:
        """The first of ours that runs in the worker's process, which inherits no logging from the parent."""
        configure_logging("data-plane", self._log_level)
        join_our_log()
        logging.captureWarnings(True)  # of models and their libraries, else lines that are no JSON
        log.debug("worker set up", device=device)


class WorkerLoop(LitLoop):  # type: ignore[misc]  # LitServe has no types
    """What LitServe runs in a worker. Pickled into it: it must hold plain values and shared memory only."""

    def __init__(
        self,
        addresses: list[str],
        drain_timeout: float,
        artifact_folder: Path,
        versions_file: Path,
        load_timeout: float = 120.0,
    ) -> None:
        """`versions_file` lists what a worker loads before it can be reached; it need not exist.

        `load_timeout`: seconds that loading and warming a version may take.
        """
        super().__init__()
        self._addresses = addresses
        self._drain_timeout = drain_timeout
        self._artifact_folder = artifact_folder
        self._versions_file = versions_file
        self._generations = [0] * len(addresses)
        self._busy_until = multiprocessing.RawArray("d", len(addresses))
        self._load_timeout = load_timeout
        self._loading_until = multiprocessing.RawArray("d", len(addresses))

    def next_generation(self, worker: int) -> None:
        """Called in the parent, before each start of the worker."""
        self._generations[worker] += 1
        # Its predecessor may have been killed while it was busy.
        self._busy_until[worker] = self._loading_until[worker] = 0.0

    def overdue(self, worker: int, now: float) -> bool:
        """Whether the worker is inside a call of a model, or a load, for longer than that may take and some grace.

        For the parent: nothing in that worker can end it. `now`: monotonic clock, seconds.
        """
        busy, loading = self._busy_until[worker], self._loading_until[worker]
        return bool(0.0 < busy < now or 0.0 < loading < now - _LOAD_GRACE)

    def __call__(self, _lit_api: LitAPI, _device: str, worker_id: int, *_litserves_queues: Any) -> None:
        """The worker's life, from here to the end of its process."""
        # Our parent for the kernel is the fork server. Without it nobody would learn how a worker ended.
        end_with_parent(os.getppid())
        # Only here: HTTP processes and parent, which import this module too, need no model's libraries.
        from serving.load_journal import LoadJournal, LoadWatch, journal_file
        from serving.worker_process import Worker

        def set_busy_until(moment: float) -> None:
            self._busy_until[worker_id] = moment

        def set_loading_until(moment: float) -> None:
            self._loading_until[worker_id] = moment

        journal = LoadJournal(journal_file(self._versions_file.parent, worker_id))
        Worker(
            self._addresses[worker_id],
            Hello(os.getpid(), worker_id, self._generations[worker_id]),
            drain_timeout=self._drain_timeout,
            artifact_folder=self._artifact_folder,
            versions_file=self._versions_file,
            set_busy_until=set_busy_until,
            load_watch=LoadWatch(self._load_timeout, journal, set_loading_until),
        ).run()
