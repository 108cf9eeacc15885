"""The process that outlives a killed supervisor and ends what it left behind, and the supervisor's hold on it.

    python -m control_plane.supervision.guardian STACK_ID GRACE_SECONDS LOG_FILE

It reads its standard input, a pipe from the supervisor: `group N` adds a process group, `gone N` takes it out again
(its number may be reused), `done` ends the guardian. The end of the pipe without `done` means that the supervisor is
dead. It imports next to nothing, so that it costs little and that nothing in it can break.
"""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from control_plane.supervision.family import Member, end, living

_SETTLE_SECONDS = 1.0
_QUICK_DEATHS_APART = 1.0


class Guard:
    """The supervisor's side: starts the guardian, tells it the groups, replaces it when it dies."""

    def __init__(self, stack_id: str, grace: float, log_file: Path) -> None:
        self._arguments = [stack_id, str(grace), str(log_file)]
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start a guardian and tell it all groups. In a session of its own: Ctrl-C in the terminal must not reach it."""
        self._started = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - our own module, our own arguments
            [sys.executable, "-P", "-m", "control_plane.supervision.guardian", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        for group in self._groups:
            self._tell(f"group {group}")

    def watch(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"group {group}")

    def forget(self, group: int) -> None:
        self._groups.discard(group)
        self._tell(f"gone {group}")

    def replace_if_dead(self) -> bool:
        """Whether a new guardian had to be started."""
        if self._process is None or self._process.poll() is None:
            return False
        if time.monotonic() - self._started < _QUICK_DEATHS_APART:
            return False
        self._let_go()
        try:
            self.start()
        except OSError:
            return False  # No memory or no process numbers left just now: the next look tries again.
        return True

    def release(self) -> None:
        """Everything has ended: the guardian may go without looking."""
        self._tell("done")
        self._let_go()
        if self._process:
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _tell(self, line: str) -> None:
        """A dead guardian hears nothing; its successor is told everything anew."""
        if self._process and self._process.stdin:
            with suppress(OSError, ValueError):
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()

    def _let_go(self) -> None:
        if self._process and self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()


def main(arguments: list[str]) -> int:
    """Wait for the supervisor's end; 0 always."""
    # A signal meant for the whole terminal or service must not take away the one who cleans up after it.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    stack_id, grace, log_file = arguments
    groups = _listen()
    if groups is None:
        return 0

    def family() -> list[Member]:
        return [each for each in living(groups) if each.stack_id == stack_id or each.group in groups]

    ended = end(family, float(grace), _SETTLE_SECONDS)
    _write_down(Path(log_file), ended)
    return 0


def _listen() -> set[int] | None:
    """The groups that live when the supervisor is gone, or None when it said that nothing is left."""
    groups: set[int] = set()
    for line in sys.stdin:
        word, _, value = line.strip().partition(" ")
        if word == "done":
            return None
        if word == "group":
            groups.add(int(value))
        elif word == "gone":
            groups.discard(int(value))
    return groups


def _write_down(log_file: Path, ended: int) -> None:
    line = {
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": "warning",
        "part": "supervisor",
        "event": "the supervisor was gone; the guardian ended what it left",
        "processes": ended,
    }
    # Where that fails, nobody is left to be told.
    with suppress(OSError), log_file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
