"""One supervised process: started, seen to be ready, found dead, ended with all that it started."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from control_plane.supervision.family import PART_VARIABLE, STACK_VARIABLE, Ending, Member
from control_plane.supervision.guardian import Guard
from control_plane.supervision.log_collector import LogCollector
from control_plane.supervision.log_writer import log_file
from control_plane.supervision.processes import ProcessSpec, inherited_environment
from control_plane.supervision.readiness import Probe
from control_plane.supervision.state import PartState


class State(StrEnum):
    """Where a process stands."""

    WAITING = "waiting"  # for a part that it needs
    STARTING = "starting"  # it runs and does not answer yet
    READY = "ready"
    DOWN = "down"  # it died; what it left is ended, and it is started again after a pause
    ENDING = "ending"
    ENDED = "ended"


class BackOff:
    """The pauses before restarts, in seconds: 0.5 doubling to 30, from the start again after a minute of life."""

    def __init__(self, first: float = 0.5, most: float = 30.0, forgiven_after: float = 60.0) -> None:
        self._first, self._most, self._forgiven_after = first, most, forgiven_after
        self._next = first

    def pause(self, lived: float) -> float:
        """The pause after a process that lived this long."""
        if lived >= self._forgiven_after:
            self._next = self._first
        pause, self._next = self._next, min(self._next * 2, self._most)
        return pause


class Child:
    """A part of the stack and, while it runs, its process. Driven by the supervisor's thread only."""

    def __init__(self, spec: ProcessSpec, stack_id: str, logs: Path) -> None:
        self.spec = spec
        self.state = State.WAITING
        self.restarts = 0
        self.seconds_to_ready: float | None = None
        self.last_end: str | None = None
        self.due = 0.0  # when it may be started again, monotonic
        self.log_file = log_file(logs, spec.name)
        self.pid: int | None = None
        self._marks = {STACK_VARIABLE: stack_id, PART_VARIABLE: spec.name}
        self._back_off = BackOff()
        self._process: subprocess.Popen[bytes] | None = None
        self._probe: Probe | None = None
        self._started = 0.0
        self._started_at = 0.0
        self._ending: Ending | None = None

    @property
    def seconds(self) -> float:
        """Since it was started, or until it was ready."""
        if self.state is State.STARTING:
            return time.monotonic() - self._started
        return self.seconds_to_ready or 0.0

    @property
    def is_ready(self) -> bool:
        return self._probe is not None and self._probe.is_ready

    def start(self, collector: LogCollector, guard: Guard) -> None:
        """Start the process in a session of its own, its output going to the collector.

        Raises:
            OSError: it cannot be started at all.
        """
        self._started, self._started_at = time.monotonic(), time.time()
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603 - the commands are those of processes.py
                self.spec.command,
                env=inherited_environment() | self.spec.environment | self._marks,
                cwd=self.spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        guard.watch(process.pid)
        collector.follow(self.spec.name, reading)
        self._process, self.pid = process, process.pid
        self._probe = Probe(self.spec.readiness, process.pid)
        self.state = State.STARTING

    def poll(self) -> str | None:
        """How the process ended, in words, or None while it runs."""
        status = self._process.poll() if self._process else None
        return None if status is None else _in_words(status)

    def note_ready(self) -> None:
        self.seconds_to_ready = time.monotonic() - self._started
        self.state = State.READY

    def note_death(self, outcome: str, grace: float) -> float:
        """It died or must die, since it does not answer; returns the pause in seconds before it is started again."""
        pause = self._back_off.pause(time.monotonic() - self._started)
        self.due = time.monotonic() + pause
        self.last_end = outcome
        self.restarts += 1
        self._begin_end(State.DOWN, grace)
        return pause

    def begin_end(self, grace: float) -> None:
        """Ask it to end; `grace` seconds until it is killed."""
        self._begin_end(State.ENDING if self._process else State.ENDED, grace)

    def hurry(self) -> None:
        """Kill what is left at the next step."""
        if self._ending:
            self._ending.hurry()

    def step_end(self, members: Sequence[Member], guard: Guard) -> bool:
        """One step towards the end of it and of all that it started; True when nobody is left."""
        if self._ending is None or self._process is None:
            return True
        self._process.poll()  # Takes our own dead child off the list of processes.
        gone = self._ending.step([each for each in members if self._is_mine(each)])
        if gone and self._process.poll() is not None:
            guard.forget(self._process.pid)
            self._process, self._ending, self.pid = None, None, None
            return True
        return False

    def report(self) -> PartState:
        """As it stands in `stack.json`; the start in seconds since 1970."""
        spec = self.spec
        started = self._started_at if self.pid else None
        ready = self.seconds_to_ready if self.state is State.READY else None
        return PartState(
            name=spec.name,
            title=spec.title,
            state=self.state.value,
            address=spec.address,
            log_file=str(self.log_file),
            pid=self.pid,
            started_at=started,
            seconds_to_ready=round(ready, 2) if ready is not None else None,
            restarts=self.restarts,
            last_end=self.last_end,
        )

    def _begin_end(self, state: State, grace: float) -> None:
        if self._probe:
            self._probe.end()
        self._ending = Ending(grace)
        self.state = state

    def _is_mine(self, member: Member) -> bool:
        marked = member.stack_id == self._marks[STACK_VARIABLE] and member.part == self.spec.name
        return marked or member.group == self.pid


def _in_words(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
