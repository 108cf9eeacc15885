"""`switchyard logs`: the lines of all parts in one stream, read back or followed across rotations, and shown."""

import heapq
import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from rich.console import Console
from rich.text import Text

from control_plane.errors import UnknownPart
from control_plane.supervision.log_lines import MAX_LINE_BYTES, plain
from control_plane.supervision.log_writer import inode, log_file, rotated

PARTS = ("data-plane", "control-plane", "prefect", "flows", "mlflow", "supervisor")

_POLL_SECONDS = 0.2
_BLOCK = 64 * 1024
_MOST_KEPT = 100  # SWITCHYARD_LOG_KEEP allows no more
_EPOCH = datetime.fromtimestamp(0, UTC)
# uvicorn says its text twice, the second time with colours.
_SHOWN_APART = frozenset({"time", "level", "part", "event", "exception", "color_message"})
_STYLES = {"debug": "dim", "info": "green", "warning": "yellow", "error": "red", "critical": "bold red"}


@dataclass(frozen=True)
class LogLine:
    """One line: as it stands in the file, and its facts."""

    raw: str
    facts: dict[str, Any]
    time: datetime

    @classmethod
    def parse(cls, raw: bytes) -> "LogLine":
        text = raw.decode(errors="replace")
        try:
            facts = orjson.loads(raw)
            time = datetime.fromisoformat(str(facts["time"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return cls(text, {"event": text}, _EPOCH)
        return cls(text, facts, time if time.tzinfo else time.replace(tzinfo=UTC))


def read_logs(home: Path, parts: Sequence[str], lines: int) -> Iterator[LogLine]:
    """The last `lines` lines of these parts together, in order of time. No parts: all of them.

    Raises:
        UnknownPart: there is no such part.
    """
    return follow_logs(home, parts, lines, is_over=lambda: True)


def follow_logs(
    home: Path, parts: Sequence[str], lines: int = 0, is_over: Callable[[], bool] = lambda: False
) -> Iterator[LogLine]:
    """The last `lines` lines, then every new one as it is written, across rotations, until `is_over`.

    Raises:
        UnknownPart: there is no such part.
    """
    tails = [_Tail(each) for each in _files(home, parts)]
    return _followed(tails, lines, is_over)


def _followed(tails: Sequence["_Tail"], lines: int, is_over: Callable[[], bool]) -> Iterator[LogLine]:
    try:
        yield from _latest(tails, lines)
        while not is_over():
            new = [LogLine.parse(raw) for tail in tails for raw in tail.new_lines()]
            yield from sorted(new, key=lambda each: each.time)
            if not new:
                time.sleep(_POLL_SECONDS)
    finally:
        for tail in tails:
            tail.close()


def print_logs(lines: Iterable[LogLine], console: Console, *, as_json: bool) -> None:
    """Show lines as they come: readable, or raw as JSON."""
    for line in lines:
        if as_json:
            console.out(line.raw, highlight=False)
        else:
            console.print(rendered(line), soft_wrap=True)


def rendered(line: LogLine) -> Text:
    """Time in the local zone, level, part, event, then the other facts as key=value; a traceback below."""
    facts = line.facts
    level = str(facts.get("level", ""))
    text = Text()
    text.append("                   " if line.time == _EPOCH else f"{line.time.astimezone():%Y-%m-%d %H:%M:%S}", "dim")
    text.append(f" {level:<8}", _STYLES.get(level, ""))
    text.append(f" {facts.get('part', ''):<13} ", "cyan")
    text.append(_harmless(facts.get("event", "")))
    for key, value in facts.items():
        if key not in _SHOWN_APART:
            text.append(f" {_harmless(key)}=", "dim")
            text.append(_harmless(value))
    if facts.get("exception"):
        text.append("\n" + _harmless(facts["exception"]), "dim")
    return text


def _harmless(value: object) -> str:
    """A log carries what strangers sent: nothing of it may steer the terminal."""
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return "\n".join(plain(each) for each in text.split("\n"))


def _files(home: Path, parts: Sequence[str]) -> list[Path]:
    for part in parts:
        if part not in PARTS:
            raise UnknownPart(part, list(PARTS))
    return [log_file(home / "logs", each) for each in parts or PARTS]


def _latest(tails: Sequence["_Tail"], lines: int) -> Iterator[LogLine]:
    if lines <= 0:
        return
    each_last = [[LogLine.parse(raw) for raw in tail.last_lines(lines)] for tail in tails]
    merged = list(heapq.merge(*each_last, key=lambda line: line.time))
    yield from merged[-lines:]


class _Tail:
    """One log file, from where it ended when this was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _opened(path)
        self._rest = b""
        self._start = _last_line_end(self._file) if self._file else 0

    def last_lines(self, count: int) -> list[bytes]:
        """The last lines before the start, the oldest first, from rotated files too where this one is short."""
        if self._file is None:
            return []
        found = _lines_before(self._file, self._start, count)
        self._file.seek(self._start)
        number = 1
        while len(found) < count and (older := _opened(rotated(self._path, number))):
            with older:
                found = _lines_before(older, _last_line_end(older), count - len(found)) + found
            number += 1
        return found

    def new_lines(self) -> list[bytes]:
        """What was written since the last call."""
        lines = self._read()
        for path in self._successors():
            following = _opened(path)
            if following is None:
                break
            lines += self._read()  # What came into the old file between reading it and its rotation.
            self.close()
            self._file = following
            lines += self._read()
        return lines

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _read(self) -> list[bytes]:
        if self._file is None:
            return []
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return lines

    def _successors(self) -> list[Path]:
        """The files written after the one we have open, the eldest first; none while it is the present one."""
        if self._file is None:
            return [self._path]
        mine = inode(self._file)
        if _inode_at(self._path) == mine:
            return []
        files = [rotated(self._path, number) for number in range(_MOST_KEPT + 1)]
        newer = list(itertools.takewhile(lambda path: _inode_at(path) != mine, files))
        if len(newer) == len(files):
            newer = [path for path in files if _changed_after(path, self._file)]
        return [path for path in reversed(newer) if path == self._path or path.exists()]


def _opened(path: Path) -> BinaryIO | None:
    with suppress(OSError):
        return path.open("rb")
    return None


def _inode_at(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_ino
    return None


def _changed_after(path: Path, file: BinaryIO) -> bool:
    """For when the file we read was deleted: those beside it may be older or newer."""
    with suppress(OSError):
        return path.stat().st_mtime_ns > os.fstat(file.fileno()).st_mtime_ns
    return False


def _last_line_end(file: BinaryIO) -> int:
    """Where the last whole line ends: the writer may be in the middle of one."""
    end = file.seek(0, io.SEEK_END)
    begin = max(0, end - MAX_LINE_BYTES)
    file.seek(begin)
    data = file.read(end - begin)
    return file.seek(begin + data.rfind(b"\n") + 1)


def _lines_before(file: BinaryIO, end: int, count: int) -> list[bytes]:
    """The last `count` whole lines before byte `end`, where a line ends."""
    data = b""
    while end > 0 and data.count(b"\n") <= count:
        size = min(_BLOCK, end)
        end -= size
        file.seek(end)
        data = file.read(size) + data
    return data.split(b"\n")[:-1][-count:]
