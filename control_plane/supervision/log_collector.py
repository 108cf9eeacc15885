"""Reads what every process prints, from a thread, and has it written line by line."""

import os
import selectors
import threading
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from control_plane.supervision.log_lines import Assembler
from control_plane.supervision.log_writer import LogWriter, stamp

_CHUNK = 64 * 1024
_LOOK_EVERY = 0.1
_LAST_LINES = 20


@dataclass
class _Stream:
    name: str
    assembler: Assembler
    ended: threading.Event = field(default_factory=threading.Event)


class LogCollector:
    """Owns the reading ends of all pipes; `writer` gets the lines."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._selector = selectors.DefaultSelector()
        self._new: deque[tuple[int, _Stream]] = deque()
        self._latest: dict[str, _Stream] = {}
        self._last: dict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=_LAST_LINES))
        self._is_closing = False
        # A byte in this pipe makes the thread look at what is new.
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._work, daemon=True, name="log-collector")
        self._thread.start()

    def follow(self, name: str, descriptor: int) -> None:
        """Read the output of part `name` from this end of a pipe, and close it at the end."""
        stream = _Stream(name, Assembler(name, stamp))
        self._latest[name] = stream
        self._new.append((descriptor, stream))
        self._wake()

    def last_lines(self, name: str, seconds: float) -> list[str]:
        """What a part that has ended said last, as text; waits for its output to end, at most this long."""
        stream = self._latest.get(name)
        if stream:
            stream.ended.wait(seconds)
        texts = [_as_text(each) for each in list(self._last[name])]
        return "\n".join(texts).splitlines()[-_LAST_LINES:]

    def close(self, seconds: float) -> None:
        """Read what is left in the pipes, for at most this long."""
        until = time.monotonic() + seconds
        for stream in list(self._latest.values()):
            stream.ended.wait(max(0.0, until - time.monotonic()))
        self._is_closing = True
        self._wake()
        self._thread.join(seconds)

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._ring, b"!")

    def _work(self) -> None:
        while not self._is_closing:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - without this thread every process blocks on its full pipe
                self._writer.note("error", "reading the output of a process failed", error=repr(error))
                time.sleep(_LOOK_EVERY)
        for descriptor, stream in self._streams().items():
            self._end(descriptor, stream)
        self._selector.close()
        os.close(self._bell)
        os.close(self._ring)

    def _turn(self) -> None:
        """Wait for output, take it in, and let go of lines that have waited for more."""
        holding = any(stream.assembler.is_holding for stream in self._streams().values())
        for key, _ in self._selector.select(_LOOK_EVERY if holding else None):
            if key.fd == self._bell:
                self._admit()
            else:
                self._read(key.fd, key.data)
        now = time.monotonic()
        for stream in self._streams().values():
            self._keep(stream, stream.assembler.flush_due(now))

    def _streams(self) -> dict[int, _Stream]:
        return {key.fd: key.data for key in self._selector.get_map().values() if key.data}

    def _admit(self) -> None:
        os.read(self._bell, _CHUNK)
        while self._new:
            descriptor, stream = self._new.popleft()
            self._selector.register(descriptor, selectors.EVENT_READ, stream)

    def _read(self, descriptor: int, stream: _Stream) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:
            data = b""
        if data:
            self._keep(stream, stream.assembler.feed(data, time.monotonic()))
        else:
            self._end(descriptor, stream)

    def _end(self, descriptor: int, stream: _Stream) -> None:
        self._keep(stream, stream.assembler.close(time.monotonic()))
        self._selector.unregister(descriptor)
        os.close(descriptor)
        stream.ended.set()

    def _keep(self, stream: _Stream, lines: list[bytes]) -> None:
        self._last[stream.name].extend(lines[-_LAST_LINES:])
        self._writer.put(stream.name, lines)


def _as_text(line: bytes) -> str:
    facts: dict[str, Any] = orjson.loads(line)
    rest = [str(facts[each]) for each in ("error", "exception") if facts.get(each)]
    return "\n".join([str(facts.get("event", "")), *rest])
