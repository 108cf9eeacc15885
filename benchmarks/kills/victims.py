"""Processes that do real work until they are killed, and tell over a pipe what they have finished.

They come from a fork server that has everything imported: a new one costs some 30 ms instead of two seconds.
"""

import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil

from benchmarks.waiting import wait_for

Message = tuple[Any, ...]
FAILED = "failed"
"""The first word of a victim's last message when its work raised: (FAILED, text)."""

_context = multiprocessing.get_context("forkserver")
# A victim imports anew what the main module does (benchmarks/chaos.py): with all of that here it starts in a tenth of a
# second, else in several.
_KILLS = ("artifacts", "parts", "routes", "schema", "spool", "supervisors")
_UNDER_LOAD = ("clients", "disk", "harm", "mixed", "outages", "restarts", "route_writes", "swaps", "workers")
_context.set_forkserver_preload(
    [
        *(f"benchmarks.kills.{each}" for each in _KILLS),
        *(f"benchmarks.under_load.{each}" for each in _UNDER_LOAD),
        "benchmarks.pages",
        "psycopg",
    ]
)
_END_GUARD = 30.0


class Victim:
    """One such process. `work` is called with `arguments` and the pipe's end, and sends tuples."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self.connection, theirs = _context.Pipe(duplex=False)
        # A daemon: should this process end in an unforeseen way, its exit ends them.
        self._process = _context.Process(target=_work, args=(work, arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def kill(self) -> list[Message]:
        """SIGKILL; what it had said and nobody had read yet."""
        self._process.kill()
        self._process.join(_END_GUARD)
        rest = self.said()
        self.connection.close()
        return rest

    def freeze(self) -> None:
        """SIGSTOP: it stands still, wherever it is, and does not know."""
        process = psutil.Process(self._process.pid)
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "a process to stand still", _END_GUARD)

    def thaw(self) -> None:
        psutil.Process(self._process.pid).resume()

    @property
    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def said(self) -> list[Message]:
        """What there is to read now."""
        found: list[Message] = []
        # A kill may have cut off a message; its end is the end of the pipe.
        with suppress(EOFError, OSError):
            while self.connection.poll():
                found.append(self.connection.recv())
        return found


@contextmanager
def ended_afterwards(victims: list[Victim]) -> Iterator[list[Victim]]:
    """Whoever is in the list at the end of the block is killed."""
    try:
        yield victims
    finally:
        for each in victims:
            each.kill()


def read_until(victims: Sequence[Victim], heed: Callable[[Victim, Message], bool], seconds: float) -> bool:
    """Give `heed` every message until it says True to one; False when it did not within `seconds`."""
    until = time.monotonic() + seconds
    by_connection: dict[object, Victim] = {each.connection: each for each in victims}
    while by_connection and (left := until - time.monotonic()) > 0:
        open_ones = [each.connection for each in by_connection.values()]
        for ready in multiprocessing.connection.wait(open_ones, left):
            messages = by_connection[ready].said()
            # All of them, not only up to the first that counts: what was read is not there a second time.
            heeded = [heed(by_connection[ready], each) for each in messages]
            if any(heeded):
                return True
            if not messages:  # the end of its pipe
                del by_connection[ready]
    return False


def _work(work: Callable[..., None], arguments: Sequence[object], connection: Connection) -> None:
    # Ctrl-C is for the one who kills us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work(*arguments, connection)
    except BrokenPipeError:
        return  # Nobody is there any more.
    except Exception as error:  # noqa: BLE001 - told to the one who judges
        connection.send((FAILED, f"{type(error).__name__}: {error}"))
