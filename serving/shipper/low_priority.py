"""Work that runs when requests leave room for it."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

_NICE = 10  # a tenth of what others get: enough to come to the end of a transaction that others wait for

Answer = TypeVar("Answer")


class LowPriority:
    """A thread that the scheduler passes over while others want the processor, on Linux; else one like any other.

    A thread and not the process, since only root may raise a priority again: what is urgent is done elsewhere.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "low-priority", initializer=_step_back)

    def do(self, work: Callable[[], Answer]) -> Answer:
        """What `work` returns or raises, once it is done."""
        return self._thread.submit(work).result()


def _step_back() -> None:
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
