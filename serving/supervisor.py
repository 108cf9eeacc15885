"""Processes that have to be there: started, brought back when they die, ended in order. In the parent's main thread."""

import multiprocessing.connection
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from serving.logs import logger

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends the data plane in good order."""

_AFTER_DRAIN = 2.0
_LOOK_EVERY = 1.0
"""Seconds between two looks for processes that hang: those that end are noticed at once."""
_HEALTHY_AFTER = 10.0
_LONGEST_PAUSE = 10.0

log = logger(__name__)


class Charge:
    """One process that has to be there. Back at once when it dies; ever later when it does nothing but die."""

    def __init__(self, name: str, launch: Callable[[], BaseProcess], count_restart: Callable[[], None]) -> None:
        self.name = name
        self.process: BaseProcess | None = None
        self.due = 0.0
        """When to start it, on the monotonic clock, while there is no process."""
        self._launch = launch
        self._count_restart = count_restart
        self._started = 0.0
        self._short_lives = 0
        self._restarting = False

    def look_after(self, now: float) -> None:
        """Start it if it is due; if it has died, say when it is."""
        if self.process is not None and not self.process.is_alive():
            self._bury(self.process, now)
        if self.process is None and now >= self.due:
            self._start(now)

    def _start(self, now: float) -> None:
        self._started = now
        if self._restarting:
            self._count_restart()
        self._restarting = True
        try:
            self.process = self._launch()
        except (OSError, EOFError) as problem:  # no memory, no descriptors, or the fork server died meanwhile
            log.error("process could not be started", process=self.name, problem=str(problem))  # noqa: TRY400
            self._pause(now)

    def _bury(self, process: BaseProcess, now: float) -> None:
        self.process = None
        self._pause(now)
        log.error(
            "process ended, starting it again",
            process=self.name, pid=process.pid, exit_code=process.exitcode, after=round(self.due - now, 1),
        )  # fmt: skip
        process.close()

    def _pause(self, now: float) -> None:
        self._short_lives = self._short_lives + 1 if now - self._started < _HEALTHY_AFTER else 0
        self.due = now + pause_before_restart(self._short_lives)


def pause_before_restart(short_lives: int) -> float:
    """Seconds to wait after `short_lives` lives of under 10 s in a row: 0, 0, 0.2, 0.4, ... 10."""
    return 0.0 if short_lives < 2 else min(_LONGEST_PAUSE, 0.1 * 2.0 ** min(short_lives - 1, 10))


class Supervisor:
    """Stands where LitServe keeps its shutdown event: it waits for a signal, and looks after all processes meanwhile."""

    def __init__(
        self, listener: socket.socket, charges: list[Charge], drain_timeout: float, hung: Callable[[], list[str]]
    ) -> None:
        """`hung` names the processes that will not come back from what they do."""
        self._listener = listener
        self._charges = charges
        self._drain_timeout = drain_timeout
        self._hung = hung
        self._stop = False
        self._wake, wakeup = socket.socketpair()
        self._wake.setblocking(False)
        wakeup.setblocking(False)
        for each in SIGNALS:
            signal.signal(each, lambda *_: self.set())
        signal.set_wakeup_fd(wakeup.detach(), warn_on_full_buffer=False)

    def set(self) -> None:
        """Begin to stop."""
        self._stop = True

    def is_set(self) -> bool:
        """Whether the server is stopping."""
        return self._stop

    def wait(self) -> None:
        """Supervise until told to stop, then end everything."""
        try:
            while not self._stop:
                self._kill_hung()
                self._look_after_all()
                self._sleep()
        finally:
            self._end_all()

    def _kill_hung(self) -> None:
        hung = self._hung()
        for charge in self._charges:
            if charge.name in hung and charge.process is not None and charge.process.is_alive():
                log.error("process hangs, killed", process=charge.name, pid=charge.process.pid)
                charge.process.kill()
                charge.process.join()

    def _look_after_all(self) -> None:
        for charge in self._charges:
            if not self._stop:
                charge.look_after(time.monotonic())

    def _sleep(self) -> None:
        """Until a process ends, one is due to be started, or a signal comes."""
        missing = [charge.due for charge in self._charges if charge.process is None]
        timeout = min([_LOOK_EVERY, *(max(0.0, due - time.monotonic()) for due in missing)])
        running = [charge.process.sentinel for charge in self._charges if charge.process is not None]
        if self._wake in multiprocessing.connection.wait([*running, self._wake], timeout):
            self._wake.recv(64)

    def _end_all(self) -> None:
        # First ours: while a copy is open the kernel accepts for it, and those clients would be cut off.
        self._listener.close()
        apis = [charge.process for charge in self._charges if charge.process and charge.name.startswith("api")]
        _end(apis, self._drain_timeout + _AFTER_DRAIN)
        # Only now, when nobody asks them anything any more. The shipper too: it takes what was answered last along.
        _end(
            [charge.process for charge in self._charges if charge.process and charge.process not in apis], _AFTER_DRAIN
        )


def _end(processes: list[BaseProcess], patience: float) -> None:
    for process in processes:
        process.terminate()
    end = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            log.error("process did not end in time, killed", process=process.name, pid=process.pid)
            process.kill()
            process.join()
