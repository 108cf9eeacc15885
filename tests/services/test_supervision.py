"""`switchyard up` with real processes: they start, come back, and are all gone in the end, whoever is killed."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from control_plane.supervision.state import read_state
from tests.processes import free_port

STACK = Path(__file__).with_name("supervised_stack.py")
# Makes standard input the terminal that Ctrl-C comes from, then becomes the command that follows.
IN_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, "
    "[sys.executable, *sys.argv[1:]])"
)


def eventually(condition: Callable[[], Any], seconds: float = 15.0, what: Callable[[], str] = str) -> Any:
    """Wait for a condition; `seconds` is a hang guard, several times what it takes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if result := condition():
            return result
        time.sleep(0.02)
    pytest.fail(f"did not happen within {seconds} s: {what()}")


class Stack:
    """A supervisor with stand-ins, in processes of its own; whatever a test leaves of it is killed by pid."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self._output = home.with_suffix(".out")
        self._started: list[subprocess.Popen[bytes]] = []
        self._settings = {"data_folder": home, "start_timeout": 30, "stop_timeout": 2} | settings

    def start(
        self, *parts: dict[str, Any], after: str | None = None, terminal: int | None = None
    ) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHYARD_")}
        environment |= {f"SWITCHYARD_{name.upper()}": str(value) for name, value in self._settings.items()}
        command = [sys.executable, str(STACK), json.dumps({"parts": parts, "after": after})]
        if terminal is not None:
            command[1:1] = ["-c", IN_ITS_TERMINAL]
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment | {"TERM": "xterm", "COLUMNS": "120"},
                stdin=terminal,
                stdout=output if terminal is None else terminal,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def start_and_wait(self, *parts: dict[str, Any], **options: Any) -> subprocess.Popen[bytes]:
        process = self.start(*parts, **options)
        eventually(lambda: self.is_ready(len(parts)), what=self.said)
        return process

    def is_ready(self, parts: int) -> bool:
        """Whether the supervisor started last says so; the file of an earlier, killed one may still be there."""
        state = read_state(self.home)
        if state is None or state.supervisor.pid != self._started[-1].pid:
            return False
        return [each.state for each in state.parts] == ["ready"] * parts

    def part(self, name: str) -> Any:
        state = read_state(self.home)
        return next(each for each in state.parts if each.name == name) if state else None

    def is_back(self, name: str, restarts: int) -> bool:
        now = self.part(name)
        return now is not None and now.restarts == restarts and now.state == "ready"

    def said(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def events(self) -> list[str]:
        lines = (self.home / "logs" / "supervisor.log").read_text().splitlines()
        return [json.loads(each)["event"] for each in lines]

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The living stand-ins by name, as they announced themselves."""
        found: dict[str, list[psutil.Process]] = {}
        for file in (self.home / "pids").glob("*") if self.home.is_dir() else ():
            try:
                process = psutil.Process(int(file.name))
                # A later process of another's may have got the number.
                if lives(process) and str(self.home) in process.cmdline():
                    found.setdefault(file.read_text(), []).append(process)
            except psutil.Error:
                continue
        return found

    def clean_up(self) -> None:
        for supervisor in self._started:
            if supervisor.poll() is None:
                supervisor.kill()
            supervisor.wait()
        for same_name in self.processes().values():
            for process in same_name:
                process.kill()


def lives(process: psutil.Process) -> bool:
    """A zombie has ended; whoever should take note of it has not yet done so."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "home")
    yield made
    made.clean_up()


def part(name: str, *does: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "does": does} | more


def status_of(process: subprocess.Popen[bytes], seconds: float = 30.0) -> int:
    return process.wait(timeout=seconds)


def test_table_names_every_address(stack: Stack) -> None:
    """Without it nobody would know where to look, or that all of it is up."""
    process = stack.start_and_wait(
        part("prefect", title="Prefect server", address="http://127.0.0.1:14200", purpose="flow runs"),
        part("mlflow", title="MLflow server", address="http://127.0.0.1:15000"),
        part("flows", needs=["prefect"]),
    )
    said = eventually(lambda: "Ctrl-C ends" in stack.said() and stack.said())
    table = said[said.index("What it is for") :]
    for shown in ("Prefect server", "http://127.0.0.1:14200", "flow runs", "http://127.0.0.1:15000", "flows"):
        assert shown in table
    assert str(stack.home / "logs") in table
    process.terminate()
    assert status_of(process) == 0


def test_a_part_waits_for_what_it_needs(stack: Stack) -> None:
    """The flow runner would die on a Prefect server that does not answer yet."""
    stack.start_and_wait(part("flows", needs=["prefect"]), part("prefect", "ready-after=0.5"))
    events = eventually(lambda: "everything is ready" in stack.events() and stack.events())
    assert events.index("prefect: ready") < events.index("flows: starting")


def test_parts_that_need_each_other_end_in_order(stack: Stack) -> None:
    """A flow runner whose server went first would hang in its last words."""
    process = stack.start_and_wait(part("prefect"), part("flows", needs=["prefect"]))
    process.terminate()
    assert status_of(process) == 0
    events = stack.events()
    assert events.index("flows: ended") < events.index("prefect: ending")


def test_dead_part_comes_back_after_a_growing_pause(stack: Stack) -> None:
    """One crash would take a part away until somebody looks; a crash loop would burn a core."""
    stack.start_and_wait(part("data-plane"), part("mlflow"))
    left_alone = stack.part("mlflow").pid
    for restarts, pause in ((1, 0.5), (2, 1.0)):
        [victim] = stack.processes()["data-plane"]
        killed_at = time.monotonic()
        victim.kill()
        eventually(partial(stack.is_back, "data-plane", restarts), 40)
        assert time.monotonic() - killed_at >= pause
        assert stack.part("data-plane").last_end == "was killed by SIGKILL"
        assert f"data-plane was killed by SIGKILL; it is started again in {pause:g} s" in stack.said()
    eventually(lambda: stack.said().count("data-plane is back after") == 2)
    assert stack.part("mlflow").pid == left_alone


def test_what_a_dead_part_left_ends_before_it_comes_back(stack: Stack) -> None:
    """A worker that outlives its server holds the port, and the new server could not start."""
    stack.start_and_wait(part("data-plane", "has-grandchild"))
    [grandchild] = eventually(lambda: stack.processes().get("data-plane-grandchild"))
    stack.processes()["data-plane"][0].kill()
    eventually(partial(stack.is_back, "data-plane", 1), 40)
    assert not lives(grandchild)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_signal_ends_all_of_it(stack: Stack, number: signal.Signals) -> None:
    """Forgotten processes would keep ports and memory, and the next start would fail."""
    process = stack.start_and_wait(part("data-plane", "has-grandchild"), part("mlflow"))
    eventually(lambda: len(stack.processes()) == 3)
    guardian = psutil.Process(read_state(stack.home).guardian_pid)  # type: ignore[union-attr]
    process.send_signal(number)
    assert status_of(process, 60) == 0
    assert stack.processes() == {}
    assert not lives(guardian)
    assert read_state(stack.home) is None
    assert "Traceback" not in stack.said()


def test_part_that_ignores_term_is_killed(tmp_path: Path) -> None:
    """One hanging process would keep `switchyard up` from ever ending."""
    stack = Stack(tmp_path / "home", stop_timeout=1)
    try:
        process = stack.start_and_wait(part("data-plane", "ignores-term"), part("mlflow"))
        asked_at = time.monotonic()
        process.terminate()
        assert status_of(process) == 0
        assert time.monotonic() - asked_at >= 1
        assert stack.processes() == {}
    finally:
        stack.clean_up()


def test_second_signal_kills_at_once(tmp_path: Path) -> None:
    """Somebody in a hurry would have to find the processes by hand."""
    stack = Stack(tmp_path / "home", stop_timeout=600)
    try:
        process = stack.start_and_wait(part("data-plane", "ignores-term", "has-grandchild"))
        process.send_signal(signal.SIGINT)
        eventually(lambda: "Ending 1 processes" in stack.said())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert status_of(process) == 0
        assert stack.processes() == {}
    finally:
        stack.clean_up()


def test_nothing_survives_a_killed_supervisor(stack: Stack) -> None:
    """After a kill -9 or an out-of-memory kill, orphans would go on serving with nobody in charge."""
    process = stack.start_and_wait(part("data-plane", "has-grandchild"), part("mlflow"))
    eventually(lambda: len(stack.processes()) == 3)
    process.kill()
    eventually(lambda: not stack.processes(), 40, lambda: str(stack.processes()))
    eventually(lambda: "the supervisor was gone; the guardian ended what it left" in stack.events())


def test_killed_guardian_is_replaced(stack: Stack) -> None:
    """With the guardian lost, a later kill of the supervisor would leave orphans."""
    process = stack.start_and_wait(part("data-plane", "has-grandchild"))
    first = read_state(stack.home).guardian_pid  # type: ignore[union-attr]
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: (now := read_state(stack.home)) and now.guardian_pid not in (None, first))
    process.kill()
    eventually(lambda: not stack.processes(), 40, lambda: str(stack.processes()))


def test_guardian_ignores_signals_meant_for_all(stack: Stack) -> None:
    """A service manager ends every process of a service at once: whoever cleans up must be the last to go."""
    process = stack.start_and_wait(part("data-plane", "has-grandchild"))
    guardian = read_state(stack.home).guardian_pid  # type: ignore[union-attr]
    assert guardian is not None
    process.send_signal(signal.SIGSTOP)  # so that it cannot start another one
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guardian, each)
    process.kill()
    eventually(lambda: not stack.processes(), 40, lambda: str(stack.processes()))


@pytest.mark.parametrize("state_file_is_lost", [False, True])
def test_next_start_clears_what_two_kills_left(stack: Stack, state_file_is_lost: bool) -> None:
    """After supervisor and guardian were killed, only hunting processes by hand would make a start possible."""
    parts = part("data-plane", "has-grandchild"), part("mlflow")
    process = stack.start_and_wait(*parts)
    old = [
        each for same in eventually(lambda: len(stack.processes()) == 3 and stack.processes()).values() for each in same
    ]
    guardian = read_state(stack.home).guardian_pid  # type: ignore[union-attr]
    assert guardian is not None
    # Stopped first, so that neither can react to the death of the other.
    process.send_signal(signal.SIGSTOP)
    os.kill(guardian, signal.SIGKILL)
    process.kill()
    process.wait()
    stale = stack.home / "run" / "worker.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale.relative_to(Path.cwd())) if stale.is_relative_to(Path.cwd()) else str(stale))
    assert len(stack.processes()) == 3
    if state_file_is_lost:
        (stack.home / "run" / "stack.json").unlink()

    process = stack.start_and_wait(*parts)
    assert not any(lives(each) for each in old)
    assert not stale.exists()
    assert "ended what an earlier, killed start had left" in stack.events()
    process.terminate()
    assert status_of(process, 60) == 0


def test_taken_port_is_told_with_its_owner(stack: Stack) -> None:
    """'Address already in use' somewhere in five logs says neither who has it nor what to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = stack.start(
            part("data-plane"), part("mlflow", title="MLflow server", port=port, port_setting="SWITCHYARD_MLFLOW_PORT")
        )
        assert status_of(process) == 1
    said = stack.said()
    assert said.startswith("PortTaken: ")
    assert f"Port {port}, wanted for the MLflow server" in said
    assert f"(process {os.getpid()}, user {psutil.Process().username()}: " in said
    assert "SWITCHYARD_MLFLOW_PORT" in said
    assert not (stack.home / "pids").exists()
    assert "prepared" not in said


def test_two_parts_on_one_port_are_told_apart(stack: Stack) -> None:
    """The second to start would fail with an error that blames a stranger."""
    process = stack.start(
        part("data-plane", port=18123, port_setting="SWITCHYARD_DATA_PLANE_PORT"),
        part("mlflow", port=18123, port_setting="SWITCHYARD_MLFLOW_PORT"),
    )
    assert status_of(process) == 1
    assert "PortShared: Port 18123 is set for more than one part: data-plane, mlflow" in stack.said()
    assert "SWITCHYARD_DATA_PLANE_PORT and SWITCHYARD_MLFLOW_PORT" in stack.said()


def test_foreign_host_is_told(tmp_path: Path) -> None:
    """A mistyped address would show up as five servers that never answer."""
    stack = Stack(tmp_path / "home", host="192.0.2.1")  # reserved for documentation: no machine has it
    try:
        assert status_of(stack.start(part("data-plane", port=18124))) == 1
        assert "HostNotUsable: No server can listen on 192.0.2.1" in stack.said()
    finally:
        stack.clean_up()


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Each part would fail in its own way and none would name the folder."""
    (tmp_path / "file").write_text("not a folder")
    stack = Stack(tmp_path / "file" / "home")
    stack._output = tmp_path / "home.out"
    try:
        assert status_of(stack.start(part("data-plane"))) == 1
        assert f"FolderNotWritable: Cannot write to {tmp_path / 'file' / 'home'}: Not a directory" in stack.said()
        assert "SWITCHYARD_DATA_FOLDER" in stack.said()
    finally:
        stack.clean_up()


def test_second_start_on_one_folder_is_refused(stack: Stack, tmp_path: Path) -> None:
    """Two supervisors would fight over ports and databases."""
    first = stack.start_and_wait(part("data-plane"))
    second = Stack(stack.home)
    second._output = tmp_path / "second.out"
    try:
        assert status_of(second.start(part("data-plane"))) == 1
        assert "AlreadyRunning: Switchyard already runs on" in second.said()
        assert f"(process {first.pid})" in second.said()
        assert stack.is_ready(1)
        assert first.poll() is None
    finally:
        for process in second._started:
            process.wait()


def test_part_that_dies_at_start_is_told_with_its_last_words(stack: Stack) -> None:
    """One would have to guess which of five logs says why nothing came up."""
    process = stack.start(part("mlflow", "has-grandchild"), part("data-plane", "fails"))
    assert status_of(process, 60) == 1
    said = stack.said()
    assert "PartEnded: The data-plane ended with status 1 while it was starting." in said
    assert "ValueError: the thing is broken" in said
    assert str(stack.home / "logs" / "data-plane.log") in said
    assert stack.processes() == {}


def test_part_that_never_answers_is_told(tmp_path: Path) -> None:
    """A start that hangs for ever says nothing about what it waits for."""
    stack = Stack(tmp_path / "home", start_timeout=1)
    try:
        process = stack.start(part("data-plane", "never-ready"), part("mlflow"))
        assert status_of(process) == 1
        assert "PartNotReady: The data-plane did not answer within 1 s (SWITCHYARD_START_TIMEOUT)" in stack.said()
        assert stack.processes() == {}
    finally:
        stack.clean_up()


def test_old_ready_file_does_not_count(stack: Stack) -> None:
    """A part would be called ready that has not even started."""
    stack.start(part("flows", "ready-after=1"))
    child = eventually(lambda: stack.processes().get("flows"))[0]
    (stack.home / "run" / "flows.ready").write_text(str(os.getpid()))
    eventually(lambda: stack.is_ready(1))
    assert (stack.home / "run" / "flows.ready").read_text() == str(child.pid)


def test_work_after_readiness_ends_the_stack_with_its_status(stack: Stack) -> None:
    """`switchyard demo` would leave everything running, or hide that it failed."""
    process = stack.start(part("data-plane"), after="return 7")
    assert status_of(process) == 7
    assert stack.processes() == {}


def test_failing_work_ends_the_stack_and_is_told(stack: Stack) -> None:
    """A broken demo would look like a finished one."""
    process = stack.start(part("data-plane"), after="fail")
    assert status_of(process) == 1
    assert "RuntimeError: the demo broke" in stack.said()
    assert stack.processes() == {}


def test_ctrl_c_in_a_terminal_is_quiet(stack: Stack) -> None:
    """The last thing a user sees of us would be a screen full of tracebacks."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    seen = bytearray()

    def read() -> bytes:
        with suppress(OSError):
            seen.extend(os.read(ours, 65536))
        return bytes(seen)

    try:
        process = stack.start(part("data-plane", "ready-after=0.5"), part("mlflow"), after="wait", terminal=theirs)
        eventually(lambda: b"Ctrl-C ends everything" in read(), what=lambda: str(read()))
        assert b"Starting Switchyard" in seen
        os.write(ours, b"\x03")
        eventually(lambda: read() and process.poll() is not None, what=lambda: str(read()))
        assert process.returncode == 130  # a script that waits for the work must not take it for done
        assert stack.processes() == {}
        assert b"Everything has ended" in read()
        assert b"Traceback" not in seen
        assert b"KeyboardInterrupt" not in seen
    finally:
        os.close(ours)
        os.close(theirs)


def test_prefect_and_mlflow_start_and_end(tmp_path: Path) -> None:
    """What holds for stand-ins would not hold for the servers that we do not write ourselves."""
    ports = [free_port(), free_port()]
    stack = Stack(tmp_path / "home", start_timeout=150, prefect_port=ports[0], mlflow_port=ports[1])
    try:
        process = stack.start({"real": "prefect"}, {"real": "mlflow"})
        eventually(lambda: stack.is_ready(2) or process.poll() is not None, 150, stack.said)
        assert process.poll() is None, stack.said()
        mlflow = stack.part("mlflow").pid
        family = [psutil.Process(mlflow), *psutil.Process(mlflow).children(recursive=True)]
        assert len(family) == 2, "job execution is off and there is one worker"
        # The command that started the server dies, the server itself remains and has the port.
        os.kill(mlflow, signal.SIGKILL)
        eventually(
            lambda: (now := stack.part("mlflow")) and now.restarts == 1 and now.state == "ready", 150, stack.said
        )
        assert not any(lives(each) for each in family)
        process.terminate()
        assert status_of(process, 60) == 0
        for port in ports:
            with socket.socket() as caller:
                assert caller.connect_ex(("127.0.0.1", port)) != 0
        assert (stack.home / "mlflow" / "mlflow.db").exists()
        assert (stack.home / "prefect" / "prefect.db").exists()
        assert "\\u001b" not in (stack.home / "logs" / "mlflow.log").read_text()
    finally:
        stack.clean_up()
