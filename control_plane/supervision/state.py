"""What runs on a data folder: who holds it, and `run/stack.json` for everybody who wants to know."""

import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from control_plane.errors import AlreadyRunning, FolderNotWritable
from control_plane.supervision.family import Member, end, living

_LEFTOVER_GRACE = 5.0
# The clock behind start times may be corrected while a process runs; a pid is not reused within so short a time.
_SAME_START_SECONDS = 2.0


@dataclass(frozen=True)
class Identity:
    """A process, told apart from a later one that got the same pid. `started_at`: seconds since 1970."""

    pid: int
    started_at: float

    @property
    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return self._matches(process) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _matches(self, process: psutil.Process) -> bool:
        return abs(process.create_time() - self.started_at) < _SAME_START_SECONDS


@dataclass(frozen=True)
class PartState:
    """One process of the stack. Times in seconds since 1970; `seconds_to_ready` of the present process."""

    name: str
    title: str
    state: str
    address: str | None
    log_file: str
    pid: int | None
    started_at: float | None
    seconds_to_ready: float | None
    restarts: int
    last_end: str | None


@dataclass(frozen=True)
class StackState:
    """The contents of `stack.json`."""

    stack_id: str
    supervisor: Identity
    guardian_pid: int | None
    started_at: float
    parts: list[PartState] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return self.supervisor.is_alive


def identity_of(pid: int) -> Identity:
    """The identity of a living process."""
    return Identity(pid, psutil.Process(pid).create_time())


def read_state(home: Path) -> StackState | None:
    """What runs, or last ran, on this data folder. None: nothing, or the file cannot be read.

    Look at `is_alive`: the file of a killed supervisor stays until the next start.
    """
    try:
        facts = json.loads(_state_file(home).read_text(encoding="utf-8"))
        supervisor = Identity(**facts.pop("supervisor"))
        parts = [PartState(**each) for each in facts.pop("parts")]
        return StackState(supervisor=supervisor, parts=parts, **facts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_state(home: Path, state: StackState) -> None:
    """Replace the file at once, so that a reader sees the old or the new one.

    Raises:
        OSError: the disk is full or gone.
    """
    beside = _state_file(home).with_suffix(".new")
    beside.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    beside.replace(_state_file(home))


def forget_state(home: Path) -> None:
    """Nothing runs any more."""
    with suppress(OSError):
        _state_file(home).unlink(missing_ok=True)


def prepare_folders(home: Path) -> None:
    """Create the folders of a stack and see that each can be written to.

    Raises:
        FolderNotWritable: one cannot; says which and why.
    """
    for folder in (home, *(home / name for name in ("run", "logs", "prefect", "mlflow"))):
        try:
            # Ours alone when we make it: feature values will be in it. Who shares the folder has made it himself.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            trial = folder / f".written-by-{os.getpid()}"
            trial.write_bytes(b"ok")
            trial.unlink()
        except OSError as error:
            problem = error.strerror or str(error)
            raise FolderNotWritable(str(folder), "SWITCHYARD_DATA_FOLDER", problem) from error


@contextmanager
def hold(home: Path) -> Iterator[None]:
    """Hold the data folder for this process, so that no second supervisor starts on it.

    Raises:
        AlreadyRunning: another one has it.
    """
    # Kept open, never deleted: the kernel lets go of the lock when this process ends, however it ends.
    with (home / "run" / "supervisor.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(str(home), _holder(home)) from None
        except OSError:
            pass  # A file system without locks: the check below is what there is.
        state = read_state(home)
        if state and state.is_alive and state.supervisor.pid != os.getpid():
            raise AlreadyRunning(str(home), state.supervisor.pid)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def clear_leftovers(home: Path) -> int:
    """End what a killed supervisor and its killed guardian left on this folder; how many processes that were.

    Call it only while the folder is held. Removes stale sockets and ready files too.
    """
    ended = end(_leftovers_of(home), _LEFTOVER_GRACE)
    for file in (home / "run").iterdir():
        if file.suffix == ".ready" or stat.S_ISSOCK(file.lstat().st_mode):
            file.unlink(missing_ok=True)
    forget_state(home)
    return ended


def _leftovers_of(home: Path) -> Callable[[], list[Member]]:
    state = read_state(home)
    stack_id = state.stack_id if state else None
    groups = _groups_still_theirs(state) if state else set()

    def search() -> list[Member]:
        # The folder too, for the case that the file with the id was lost.
        return [
            each
            for each in living(groups)
            if each.group in groups or (each.stack_id and (each.stack_id == stack_id or each.folder == str(home)))
        ]

    return search


def _groups_still_theirs(state: StackState) -> set[int]:
    """Process groups whose leader is still the one we started: after a reboot the numbers are other people's."""
    return {
        each.pid
        for each in state.parts
        if each.pid and each.started_at and Identity(each.pid, each.started_at).is_alive
    }


def _holder(home: Path) -> int:
    state = read_state(home)
    if state and state.is_alive:
        return state.supervisor.pid
    try:
        return int((home / "run" / "supervisor.lock").read_text())
    except (OSError, ValueError):
        return 0


def _state_file(home: Path) -> Path:
    return home / "run" / "stack.json"
