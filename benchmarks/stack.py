"""The real stack for a measurement: `switchyard up` on a data folder and ports of its own, gone afterwards."""

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.waiting import wait_for
from control_plane.supervision.state import PartState, StackState, read_state

PARTS = ("data-plane", "control-plane", "prefect", "flows", "mlflow")
_PORT_SETTINGS = ("DATA_PLANE_PORT", "CONTROL_PLANE_PORT", "PREFECT_PORT", "MLFLOW_PORT")
# Printed by `switchyard up` right under its table.
_AFTER_THE_TABLE = "Ctrl-C ends everything."
_FOLDER_VARIABLE, _PART_VARIABLE = "SWITCHYARD_DATA_FOLDER", "_SWITCHYARD_PART"
# Below the range from which the system takes ports for outgoing connections. From within it, a client that asks a
# dead part again and again would sooner or later be given that part's own port and connect to itself.
_PORTS = range(20_000, 32_000)
_START_GUARD = 240.0
_END_GUARD = 60.0
_KILL_GUARD = 20.0


@dataclass(frozen=True)
class Piece:
    """A living process of the stack and the part it belongs to: one of PARTS, `supervisor` or `guardian`."""

    process: psutil.Process
    part: str


class StartFailed(Exception):
    """`switchyard up` ended instead of coming up."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"switchyard up ended with status {status}: {' '.join(said.split())[-600:]}")


class Stack:
    """A supervisor with its five parts. Processes are found by the data folder in their environment.

    The product finds its own by another mark; what it overlooks shows here.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        """`settings`: further ones, by their names in the environment."""
        self.home = folder / "home"
        self._settings = dict(settings or {})
        self._folder, self._said_in = folder, folder / "up.out"
        self._ports = dict(zip(_PORT_SETTINGS, free_ports(len(_PORT_SETTINGS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def data_plane_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['DATA_PLANE_PORT']}"

    @property
    def control_plane_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['CONTROL_PLANE_PORT']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['MLFLOW_PORT']}"

    @property
    def data_plane_port(self) -> int:
        return self._ports["DATA_PLANE_PORT"]

    @property
    def supervisor(self) -> int:
        """The pid of the supervisor started last."""
        if self._process is None:
            raise RuntimeError("nothing was started")
        return self._process.pid

    @property
    def guardian(self) -> int:
        """The pid of its guardian."""
        return wait_for(lambda: self.state().guardian_pid, "a guardian", _START_GUARD)

    def start(self) -> None:
        """Give the command; `wait_ready` waits for the table."""
        settings = {f"SWITCHYARD_{name}": str(port) for name, port in self._ports.items()}
        settings |= {_FOLDER_VARIABLE: str(self.home), "COLUMNS": "120", **self._settings}
        self._started = time.monotonic()
        with self._said_in.open("wb") as output:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("switchyard")), "up"],
                env=_without_settings(os.environ) | settings,
                cwd=self._folder,  # no `.env` of the checkout's
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self) -> float:
        """Seconds from the command to the table, when every part was ready.

        Raises:
            StartFailed: it ended instead.
        """
        wait_for(lambda: _AFTER_THE_TABLE in self.said() or self._has_ended(), "every part to be ready", _START_GUARD)
        seconds = time.monotonic() - self._started
        if self._has_ended():
            raise StartFailed(self._process.returncode if self._process else -1, self.said())
        return seconds

    def stop(self) -> float:
        """Send SIGTERM; seconds until no process of the stack is left."""
        began = time.monotonic()
        if self._process:
            self._process.terminate()
            wait_for(lambda: self._has_ended() and not self.processes(), "everything to be gone", _END_GUARD)
        return time.monotonic() - began

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor alone."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def kill_everything(self) -> None:
        """SIGKILL to all of it, as often as it takes."""

        def is_gone() -> bool:
            found = self.processes()
            for each in found:
                with suppress(psutil.Error):
                    each.process.kill()
            return not found and self._has_ended()

        wait_for(is_gone, "killed processes to be gone", _KILL_GUARD)

    def state(self) -> StackState:
        """What the supervisor started last says of itself and its parts."""

        def own() -> StackState | None:
            found = read_state(self.home)
            return found if found and found.supervisor.pid == self.supervisor else None

        return wait_for(own, "the supervisor's state file", _START_GUARD)

    def part(self, name: str) -> PartState:
        return next(each for each in self.state().parts if each.name == name)

    def processes(self) -> list[Piece]:
        """Every living process that was started with this data folder."""
        state = read_state(self.home)
        guardian = state.guardian_pid if state else None
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                environment = process.environ()
                if environment.get(_FOLDER_VARIABLE) != str(self.home) or not is_alive(process):
                    continue
                otherwise = "guardian" if process.pid == guardian else "supervisor"
                found.append(Piece(process, environment.get(_PART_VARIABLE, otherwise)))
        return found

    def said(self) -> str:
        """What it has printed so far."""
        return self._said_in.read_text(errors="replace") if self._said_in.exists() else ""

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


@contextmanager
def fresh_stack(settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """A stack on an empty data folder, not started yet; whatever runs of it in the end is killed."""
    with tempfile.TemporaryDirectory(prefix="switchyard-", ignore_cleanup_errors=True) as folder:
        stack = Stack(Path(folder), settings)
        try:
            yield stack
        finally:
            stack.kill_everything()


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie has ended, only nobody has looked yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 on which nobody listens now."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a person has set for servers of their own."""
    theirs = ("SWITCHYARD_", "_SWITCHYARD_", "PREFECT_", "MLFLOW_")
    return {name: value for name, value in environment.items() if not name.startswith(theirs)}
