"""Keeps the processes of a stack running: starts them in order, restarts the dead, ends all of them."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from control_plane.errors import PartEnded, PartNotReady
from control_plane.supervision.child import Child, State
from control_plane.supervision.family import Member, living
from control_plane.supervision.guardian import Guard
from control_plane.supervision.log_collector import LogCollector
from control_plane.supervision.log_writer import LogWriter
from control_plane.supervision.state import StackState, identity_of, write_state

_TICK_SECONDS = 0.1
# What a dead process left behind gets this long before its successor is started in its place.
_LEFTOVER_SECONDS = 5.0
_DRAIN_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Audience(Protocol):
    """Whoever shows a person what happens."""

    def changed(self, child: Child) -> None:
        """A process has a new state."""

    def died(self, child: Child, pause: float) -> None:
        """A process is started again in `pause` seconds."""

    def up(self, children: Sequence[Child]) -> None:
        """Everything is ready for the first time."""

    def ending(self, count: int) -> None:
        """That many processes are being ended."""

    def ended(self) -> None:
        """Nothing runs any more."""


class Task(Protocol):
    """Work that is done once everything is ready, beside the supervision."""

    def begin(self) -> None:
        """Everything is ready: do it."""

    def abandon(self) -> None:
        """The stack is ended before the work is done; how the work fails does not matter any more."""

    @property
    def wants_end(self) -> bool:
        """Whether the stack has served its purpose."""
        ...


class Supervisor:
    """Runs a list of children until a signal comes. `run` belongs in the main thread, which gets the signals."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        home: Path,
        stack_id: str,
        start_timeout: float,
        stop_timeout: float,
        audience: Audience,
        writer: LogWriter,
        collector: LogCollector,
        guard: Guard,
    ) -> None:
        self._children = children
        self._by_name = {each.spec.name: each for each in children}
        self._home, self._stack_id, self._began = home, stack_id, time.time()
        self._start_timeout, self._stop_timeout = start_timeout, stop_timeout
        self._audience, self._writer, self._collector, self._guard = audience, writer, collector, guard
        self._signals = 0
        self._is_up = False
        self._steps: dict[State, Callable[[Child], None]] = {
            State.WAITING: self._start_if_due,
            State.STARTING: self._watch_start,
            State.READY: self._watch,
            State.DOWN: self._clear_then_start,
        }

    def run(self, task: Task) -> None:
        """Start everything, begin `task` when all is ready, and return after a signal when everything has ended.

        Raises:
            PartEnded: a process died while it was starting; everything was ended again.
            PartNotReady: one did not get ready in time; everything was ended again.
        """
        with self._counting_signals():
            self._guard.start()
            try:
                while not (self._signals or task.wants_end):
                    self._tick(task)
                    time.sleep(_TICK_SECONDS)
                if self._signals:
                    task.abandon()
            finally:
                self._end_all()

    @contextmanager
    def _counting_signals(self) -> Iterator[None]:
        """A handler only counts: whatever is under way when a signal comes is finished first."""

        def count(_number: int, _frame: FrameType | None) -> None:
            self._signals += 1

        # Who starts us with nohup wants us to survive the terminal.
        heeded = [each for each in _SIGNALS if each is signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN]
        before = {each: signal.signal(each, count) for each in heeded}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _tick(self, task: Task) -> None:
        if self._guard.replace_if_dead():
            self._writer.note("warning", "the guardian was gone; another one was started", pid=self._guard.pid)
            self._record()
        for child in self._children:
            self._steps[child.state](child)
        if not self._is_up and all(each.state is State.READY for each in self._children):
            self._is_up = True
            self._writer.note("info", "everything is ready", seconds=round(time.time() - self._began, 1))
            self._audience.up(self._children)
            task.begin()

    def _start_if_due(self, child: Child) -> None:
        needed = [self._by_name[name] for name in child.spec.needs if name in self._by_name]
        if time.monotonic() < child.due or any(each.state is not State.READY for each in needed):
            return
        try:
            child.start(self._collector, self._guard)
        except OSError as error:
            self._lost(child, f"could not be started ({error.strerror or error})")
        else:
            # Into its own file: whoever reads that sees where one life ends and the next begins.
            self._writer.note_of(child.spec.name, "info", "started by switchyard", pid=child.pid)
            self._changed(child)

    def _watch_start(self, child: Child) -> None:
        if outcome := child.poll():
            self._lost(child, outcome)
        elif child.is_ready:
            child.note_ready()
            self._changed(child)
        elif child.seconds > self._start_timeout:
            self._lost(child, None)

    def _watch(self, child: Child) -> None:
        if outcome := child.poll():
            self._lost(child, outcome)

    def _clear_then_start(self, child: Child) -> None:
        if child.pid is None or child.step_end(self._members(), self._guard):
            self._start_if_due(child)

    def _lost(self, child: Child, outcome: str | None) -> None:
        """A process died, or (outcome None) does not get ready. At the first start that is the end of everything."""
        if not self._is_up:
            raise self._failure(child, outcome)
        said = outcome or f"did not answer within {self._start_timeout:g} s"
        pause = child.note_death(said, min(_LEFTOVER_SECONDS, self._stop_timeout))
        self._changed(child, outcome=said, restart_in=pause)
        self._audience.died(child, pause)

    def _failure(self, child: Child, outcome: str | None) -> PartEnded | PartNotReady:
        title, log = child.spec.title, str(child.log_file)
        if outcome is None:
            return PartNotReady(title, self._start_timeout, log, self._collector.last_lines(child.spec.name, 0))
        return PartEnded(title, outcome, log, self._collector.last_lines(child.spec.name, _DRAIN_SECONDS))

    def _end_all(self) -> None:
        """End everything; a further signal kills what is left at once."""
        running = [each for each in self._children if each.pid]
        if running:
            self._audience.ending(len(running))
        signals, hurried = self._signals, False
        while any(each.state is not State.ENDED for each in self._children):
            if self._signals > signals and not hurried:
                hurried = True
                self._writer.note("warning", "a second signal: everything is killed at once")
            self._step_end(hurry=hurried)
            time.sleep(_TICK_SECONDS / 2)
        self._guard.release()
        self._audience.ended()

    def _step_end(self, *, hurry: bool) -> None:
        members = self._members()
        for child in self._children:
            if child.state not in (State.ENDING, State.ENDED) and (hurry or self._is_needed_no_more(child)):
                child.begin_end(self._stop_timeout)
                self._changed(child)
            if hurry:
                child.hurry()
            if child.state is State.ENDING and child.step_end(members, self._guard):
                child.state = State.ENDED
                self._changed(child)

    def _is_needed_no_more(self, child: Child) -> bool:
        return all(each.state is State.ENDED for each in self._children if child.spec.name in each.spec.needs)

    def _members(self) -> Sequence[Member]:
        return living({each.pid for each in self._children if each.pid})

    def _changed(self, child: Child, **facts: object) -> None:
        self._writer.note(
            "info", f"{child.spec.title}: {child.state.value}", name=child.spec.name, pid=child.pid, **facts
        )
        self._record()
        self._audience.changed(child)

    def _record(self) -> None:
        parts = [each.report() for each in self._children]
        me = identity_of(os.getpid())
        try:
            write_state(self._home, StackState(self._stack_id, me, self._guard.pid, self._began, parts))
        except OSError as error:
            # What runs goes on running, whatever becomes of the file that says so.
            self._writer.note("error", "the state file could not be written", problem=str(error))
