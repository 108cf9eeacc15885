"""Writes lines to one rotated file per process, from a thread, so that a slow or full disk holds nobody up for ever."""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import orjson

# Lines that wait for the disk, in bytes. Beyond it a writer waits once for a moment, then lines are dropped.
_WAITING_BYTES = 16 * 1024 * 1024
_PATIENCE_SECONDS = 1.0


def stamp() -> str:
    """The present time as it stands in a line."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def log_file(folder: Path, name: str) -> Path:
    """The file that the present lines of a part go to."""
    return folder / f"{name}.log"


def rotated(path: Path, number: int) -> Path:
    """The file itself (0), or the one that was rotated `number` times."""
    return path.with_name(f"{path.name}.{number}") if number else path


def inode(file: BinaryIO) -> int:
    """Which file this is, whatever it is called by now."""
    return os.fstat(file.fileno()).st_ino


class RotatedFile:
    """Appends to `path`; at `max_bytes` it becomes `path.1`, and so on up to `keep` old files."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._file: BinaryIO | None = None

    def write(self, lines: Sequence[bytes]) -> None:
        """Append the lines.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        try:
            for each in self._portions(lines):
                self._append(each)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._file:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _portions(self, lines: Sequence[bytes]) -> list[bytes]:
        """The lines joined into pieces of at most a file's size, a single longer line apart."""
        portions: list[bytes] = []
        pending: list[bytes] = []
        size = 0
        for line in lines:
            if pending and size + len(line) + 1 > self._max_bytes:
                portions.append(b"\n".join(pending) + b"\n")
                pending, size = [], 0
            pending.append(line)
            size += len(line) + 1
        return [*portions, b"\n".join(pending) + b"\n"] if pending else portions

    def _append(self, data: bytes) -> None:
        file = self._opened()
        if (size := file.tell()) and size + len(data) > self._max_bytes:
            self._rotate()
            file = self._opened()
        start, written = file.tell(), 0
        try:
            # Unbuffered: what was written can be read at once, and a full disk is noticed here.
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            # No half line, which the next one would be glued to.
            with suppress(OSError):
                file.truncate(start)
            raise

    def _opened(self) -> BinaryIO:
        if self._file and self._was_taken_away():
            self.close()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        return self._file

    def _was_taken_away(self) -> bool:
        """Somebody deleted or moved the file: go on in a new one."""
        try:
            return self._file is None or self._path.stat().st_ino != inode(self._file)
        except FileNotFoundError:
            return True

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep - 1, -1, -1):
            with suppress(FileNotFoundError):
                rotated(self._path, number).replace(rotated(self._path, number + 1))


class LogWriter:
    """Takes lines from anybody and never makes them wait for more than a moment; counts what it had to drop."""

    def __init__(self, folder: Path, max_bytes: int, keep: int, waiting_bytes: int = _WAITING_BYTES) -> None:
        self._folder, self._max_bytes, self._keep = folder, max_bytes, keep
        self._waiting_bytes = waiting_bytes
        self._files: dict[str, RotatedFile] = {}
        self._queue: deque[tuple[str, list[bytes]]] = deque()
        self._waiting = 0
        self._is_stuck = self._is_closing = False
        self._changed = threading.Condition()
        self._lost: Counter[str] = Counter()
        self._reason = ""
        self._thread = threading.Thread(target=self._work, daemon=True, name="log-writer")
        self._thread.start()

    def put(self, name: str, lines: list[bytes]) -> None:
        """Have the lines written to the file of `name`, or dropped and counted if the disk does not keep up."""
        if not lines:
            return
        size = sum(len(each) + 1 for each in lines)
        with self._changed:
            if self._waiting > self._waiting_bytes and not self._is_stuck:
                self._changed.wait_for(lambda: self._waiting <= self._waiting_bytes, _PATIENCE_SECONDS)
                self._is_stuck = self._waiting > self._waiting_bytes
            if self._is_stuck:
                self._lost[name] += len(lines)
                self._reason = "the disk did not keep up"
                return
            self._queue.append((name, lines))
            self._waiting += size
            self._changed.notify_all()

    def note(self, level: str, event: str, /, **facts: object) -> None:
        """A line of the supervisor's own."""
        self.note_of("supervisor", level, event, **facts)

    def note_of(self, part: str, level: str, event: str, /, **facts: object) -> None:
        """A line of the supervisor's, into the file of the part it is about."""
        line = {"time": stamp(), "level": level, "part": part, "event": event, **facts}
        self.put(part, [orjson.dumps(line, default=str)])

    def lost(self, name: str) -> int:
        """Lines of a part that were dropped and whose loss does not stand in its file yet."""
        with self._changed:
            return self._lost[name]

    @property
    def is_behind(self) -> bool:
        """Whether lines are being dropped because the disk does not keep up."""
        return self._is_stuck

    def close(self, seconds: float) -> None:
        """Write what is waiting, for at most this long."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._next_batch():
            for name, lines in batch.items():
                self._write(name, lines)
            with self._changed:
                self._waiting -= sum(len(line) + 1 for lines in batch.values() for line in lines)
                if self._waiting <= self._waiting_bytes // 2:
                    self._is_stuck = False
                self._changed.notify_all()
        for file in self._files.values():
            file.close()

    def _next_batch(self) -> dict[str, list[bytes]]:
        """All that waits, by name; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closing)
            taken, self._queue = self._queue, deque()
        batch: dict[str, list[bytes]] = {}
        for name, lines in taken:
            batch.setdefault(name, []).extend(lines)
        return batch

    def _write(self, name: str, lines: list[bytes]) -> None:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = RotatedFile(log_file(self._folder, name), self._max_bytes, self._keep)
        with self._changed:
            lost, reason = self._lost.pop(name, 0), self._reason
        try:
            file.write([*([_loss(name, lost, reason)] if lost else []), *lines])
        except OSError as error:
            with self._changed:
                self._lost[name] += lost + len(lines)
                self._reason = error.strerror or str(error)
            time.sleep(0.1)  # A full disk answers at once: do not ask it in a tight loop.


def _loss(name: str, lines: int, reason: str) -> bytes:
    event = {"time": stamp(), "level": "error", "part": name, "event": "log lines were lost here", "lines": lines}
    return orjson.dumps(event | {"reason": reason})
