"""The door: `run_stack` is what `switchyard up` and `switchyard demo` call."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from control_plane.settings import Settings
from control_plane.supervision.child import Child
from control_plane.supervision.guardian import Guard
from control_plane.supervision.log_collector import LogCollector
from control_plane.supervision.log_writer import LogWriter, log_file
from control_plane.supervision.ports import check_ports
from control_plane.supervision.processes import ProcessSpec, stack
from control_plane.supervision.screen import Screen
from control_plane.supervision.state import clear_leftovers, forget_state, hold, prepare_folders
from control_plane.supervision.supervisor import Supervisor

# What the guardian grants between TERM and KILL when the supervisor was killed, seconds.
_GUARDIAN_GRACE = 5.0
_LAST_WORDS_SECONDS = 2.0
_CALLED_OFF = 130


def run_stack(
    settings: Settings,
    prepare: Callable[[], None],
    console: Console,
    when_ready: Callable[[], int] | None = None,
    *,
    exit_after: bool = False,
) -> int:
    """Run the whole stack until SIGINT, SIGTERM or SIGHUP; a second signal kills it. Call it from the main thread.

    `prepare` is called when nothing runs on the data folder any more and every port is free, before anything is
    started. `when_ready` is called once everything is ready, in a thread of its own; with `exit_after` the stack is
    ended when it returns. Returns what `when_ready` returned; 130 where a signal came before that was to end the stack;
    else 0.

    Raises:
        FolderNotWritable, AlreadyRunning, PortShared, PortTaken, HostNotUsable: nothing was started.
        PartEnded, PartNotReady: one process did not come up; all were ended again.
        Whatever `prepare` or `when_ready` raises; in the latter case everything was ended.
    """
    return run_processes(settings, stack(settings), prepare, console, when_ready, exit_after=exit_after)


def run_processes(
    settings: Settings,
    specs: Sequence[ProcessSpec],
    prepare: Callable[[], None],
    console: Console,
    when_ready: Callable[[], int] | None = None,
    *,
    exit_after: bool = False,
) -> int:
    """As `run_stack`, with processes of the caller's choice."""
    prepare_folders(settings.home)
    with hold(settings.home):
        cleared = clear_leftovers(settings.home)
        check_ports(settings.host, specs)
        prepare()
        task = ReadyTask(when_ready, exit_after=exit_after)
        with _logs(settings) as (writer, collector):
            if cleared:
                writer.note("warning", "ended what an earlier, killed start had left", processes=cleared)
            _supervise(settings, specs, task, console, writer, collector)
        forget_state(settings.home)
        return task.outcome()


class ReadyTask:
    """`when_ready` in a thread, so that supervision and Ctrl-C go on working meanwhile."""

    def __init__(self, work: Callable[[], int] | None, *, exit_after: bool) -> None:
        self._work, self._exit_after = work, exit_after
        self._status = 0
        self._error: BaseException | None = None
        self._is_done = self._is_abandoned = False

    @property
    def wants_end(self) -> bool:
        return self._is_done and (self._exit_after or self._error is not None)

    def begin(self) -> None:
        if self._work:
            # A daemon: after Ctrl-C nobody waits for work whose servers are gone.
            threading.Thread(target=self._do, args=(self._work,), daemon=True, name="when-ready").start()

    def abandon(self) -> None:
        # What failed by now may have failed by what ends everything, such as Ctrl-C that its own processes get too.
        self._is_abandoned = not self._is_done or self._error is not None

    def outcome(self) -> int:
        """What the work returned; raises what it raised. Of work that was called off: 130 where the end was to wait for it."""
        if self._is_abandoned:
            return _CALLED_OFF if self._exit_after else 0
        if self._error:
            raise self._error
        return self._status

    def _do(self, work: Callable[[], int]) -> None:
        try:
            self._status = work()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread, by `outcome`
            self._error = error
        self._is_done = True


@contextmanager
def _logs(settings: Settings) -> Iterator[tuple[LogWriter, LogCollector]]:
    writer = LogWriter(settings.home / "logs", int(settings.log_max_mb * 1e6), settings.log_keep)
    collector = LogCollector(writer)
    try:
        yield writer, collector
    finally:
        collector.close(_LAST_WORDS_SECONDS)
        writer.close(_LAST_WORDS_SECONDS)


def _supervise(
    settings: Settings,
    specs: Sequence[ProcessSpec],
    task: ReadyTask,
    console: Console,
    writer: LogWriter,
    collector: LogCollector,
) -> None:
    logs, stack_id = settings.home / "logs", str(uuid.uuid4())
    children = [Child(spec, stack_id, logs) for spec in specs]
    screen = Screen(console, children, logs)
    supervisor = Supervisor(
        children,
        home=settings.home,
        stack_id=stack_id,
        start_timeout=settings.start_timeout,
        stop_timeout=settings.stop_timeout,
        audience=screen,
        writer=writer,
        collector=collector,
        guard=Guard(stack_id, _GUARDIAN_GRACE, log_file(logs, "supervisor")),
    )
    writer.note("info", "starting", stack_id=stack_id, parts=[each.name for each in specs])
    screen.begin()
    supervisor.run(task)
