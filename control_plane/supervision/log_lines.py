"""Makes of what a process prints one JSON object a line. Pure: bytes and times in, lines out.

A line that already is our JSON passes through. Any other is wrapped as `{"time", "level", "part", "event"}`, its level
guessed, its colours and passwords removed, and a traceback stays with the line that it belongs to, as `exception`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import orjson

from serving.logs import mask

MAX_LINE_BYTES = 256 * 1024
# A line waits this long for lines that belong to it: since the last of them, and since the first.
QUIET_SECONDS = 0.25
HELD_SECONDS = 0.9
_MAX_HELD_LINES = 500

_LEVELS = {
    "TRACE": "debug",
    "DEBUG": "debug",
    "INFO": "info",
    "NOTICE": "info",
    "WARN": "warning",
    "WARNING": "warning",
    "ERROR": "error",
    "CRITICAL": "critical",
    "FATAL": "critical",
}
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TIME = re.compile(r"\[?(?:\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\]?\s*\|?\s*")
_LEVEL = re.compile(rf"\[?({'|'.join(_LEVELS)})\]?(?:\s*[|:]\s*|\s+-\s+|\s+(?=\S))")
_SHOUTED = re.compile(r"\b(ERROR|CRITICAL|FATAL|WARNING)\b")
_ERROR_NAME = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Exit|Interrupt|Group)\b(?::|$)")
_WARNING_NAME = re.compile(r"\b\w*Warning:")
_TRACEBACK = re.compile(r"\s*(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):")
_CHAINED = re.compile(
    r"During handling of the above|The above exception was|\[SQL|\[parameters|\(Background on this error"
)
_INDENTED = re.compile(r"[ \t│╭╰]")
# Rules and drawings made of characters, and Prefect's greeting, which would be repeated at every start.
_NOISE = re.compile(
    r"[\s_|\\/()=*#~+-]*$|Configure Prefect to communicate with|\s+prefect config set PREFECT_API_URL=|"
    r"View the API reference documentation at|Check out the dashboard at"
)


@dataclass
class _Held:
    """An event that may not be complete yet."""

    level: str | None
    event: list[str]
    since: float
    trace: list[str] = field(default_factory=list)
    within: Literal["event", "frames", "chain"] = "event"

    def takes(self, line: str) -> bool:
        """Whether the line belongs to this event."""
        if len(self.event) + len(self.trace) >= _MAX_HELD_LINES:
            return False
        if _TRACEBACK.match(line):
            return self.within != "frames"
        if self.within == "event":
            return bool(_INDENTED.match(line) and line.strip())
        if not line.strip() or _INDENTED.match(line) or _CHAINED.match(line):
            return True
        # The first line at the margin after the frames names the exception.
        return self.within == "frames" and not _begins_an_event(line)

    def add(self, line: str) -> None:
        if _TRACEBACK.match(line):
            self.within = "frames"
        elif self.within == "frames" and line.strip() and not _INDENTED.match(line):
            self.within = "chain"
        (self.event if self.within == "event" else self.trace).append(line)

    def facts(self) -> dict[str, str]:
        trace = "\n".join(self.trace).strip("\n")
        at_margin = [each for each in self.trace if each.strip() and not _INDENTED.match(each)]
        event = "\n".join(self.event) or (at_margin[-1] if at_margin else "traceback")
        facts = {"level": self.level or ("error" if trace else "info"), "event": mask(event)}
        return facts | ({"exception": mask(trace)} if trace else {})


class Assembler:
    """Assembles the output of one process.

    `part` is the name that wrapped lines carry, `stamp` says the present time as it stands in a line. Times given to
    the methods are monotonic seconds.
    """

    def __init__(self, part: str, stamp: Callable[[], str]) -> None:
        self._part, self._stamp = part, stamp
        self._rest = b""
        self._held: _Held | None = None
        self._last = 0.0

    @property
    def is_holding(self) -> bool:
        """Whether `flush_due` has to be called soon."""
        return self._held is not None

    def feed(self, data: bytes, now: float) -> list[bytes]:
        """The lines, without their ends, that are complete after this much more output."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        done: list[bytes] = []
        for line in lines:
            self._take(line, now, done)
        return done

    def flush_due(self, now: float) -> list[bytes]:
        """What has waited long enough for more."""
        held = self._held
        if held and (now - self._last >= QUIET_SECONDS or now - held.since >= HELD_SECONDS):
            return self._release()
        return []

    def close(self, now: float) -> list[bytes]:
        """The process prints no more: everything that is left."""
        done = self.feed(b"\n", now) if self._rest else []
        return done + self._release()

    def _take(self, raw: bytes, now: float, done: list[bytes]) -> None:
        if is_ours(raw):
            done += self._release()
            done.append(raw)
            return
        self._last = now
        line = plain(raw.decode(errors="replace"))
        if self._held and self._held.takes(line):
            self._held.add(line)
            return
        done += self._release()
        if _TRACEBACK.match(line):
            self._held = _Held("error", [], now)
            self._held.add(line)
        elif not _NOISE.match(line):
            level, event = guess(line)
            self._held = _Held(level, [event], now)

    def _release(self) -> list[bytes]:
        if self._held is None:
            return []
        facts, self._held = self._held.facts(), None
        return [wrapped(self._stamp(), self._part, facts)]


def is_ours(raw: bytes) -> bool:
    """Whether a line is a JSON object as our own processes write them."""
    if not raw.startswith(b"{"):
        return False
    try:
        facts = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return isinstance(facts, dict) and facts.keys() >= {"time", "level", "event"}


def wrapped(time: str, part: str, facts: dict[str, str]) -> bytes:
    """One line as our own processes write them."""
    return orjson.dumps({"time": time, "level": facts.pop("level"), "part": part, **facts})


def plain(text: str) -> str:
    """The text without colours, cursor movements and other control characters; of an overwritten line the last state."""
    return _CONTROL.sub("", _ANSI.sub("", text).rstrip("\r").rpartition("\r")[2])


def guess(line: str) -> tuple[str | None, str]:
    """Level and event of a line from a foreign logger: its own time and level are taken off the front."""
    time = _TIME.match(line)
    rest = line[time.end() :] if time else line
    level = _LEVEL.match(rest)
    if level and (time or "|" in level[0] or ":" in level[0] or "]" in level[0]):
        return _LEVELS[level[1]], rest[level.end() :].rstrip()
    return _guessed_level(rest), rest.rstrip()


def _guessed_level(text: str) -> str | None:
    """None where nothing speaks for any level."""
    if _WARNING_NAME.search(text):
        return "warning"
    if shouted := _SHOUTED.search(text[:200]):
        return _LEVELS[shouted[1]]
    return "error" if _ERROR_NAME.match(text) else None


def _begins_an_event(line: str) -> bool:
    return bool(_TIME.match(line) or _LEVEL.match(line))
