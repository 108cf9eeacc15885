"""One request and its answer on a kept-alive connection, and what became of it; nothing is ever asked a second time."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson

GRACE = 1.0
"""Seconds beyond its deadline after which a request without an answer counts as hanging."""

_MOST_HEAD = 64 * 1024


class Fate(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"  # nobody listened
    RESET = "reset"  # the connection ended before the answer was whole
    HUNG = "hung"  # no answer by its deadline and a second


@dataclass(frozen=True)
class Question:
    """What is asked, and how its answer is told from a wrong one."""

    path: str
    body: bytes
    find_fault: Callable[[dict[str, Any]], str | None]  # what is wrong with an answer of 200, if anything
    deadline: float = 30.0  # seconds in which the server promises an answer
    headers: tuple[tuple[str, str], ...] = ()

    def encoded(self) -> bytes:
        """As it travels."""
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: trial\r\ncontent-type: application/json\r\n{more}"
            f"content-length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: from when to when on the monotonic clock, and what came of it."""

    began: float
    ended: float
    fate: Fate
    port: int  # of the client; 0 where it got no connection
    status: int = 0
    id: bytes = b""  # of its row in the log of predictions, where it is known
    version: str = ""
    fault: str | None = None  # what is wrong with the answer
    connected_at: float = 0.0
    reused: bool = False  # the connection had carried other requests before

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.port: int = writer.get_extra_info("sockname")[1]
        self.connected_at = time.monotonic()
        self.used = False

    @property
    def is_usable(self) -> bool:
        """Whether the server has not hung up meanwhile, as far as we know."""
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def ask(self, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers (names in lower case) and body. Raises OSError or EOFError when the connection ends."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        pairs = (line.partition(b":") for line in lines[1:])
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers[b"content-length"]))
        self.used = True
        if headers.get(b"connection", b"").lower() == b"close":
            self.close()
        return int(lines[0].split(b" ", 2)[1]), headers, body

    def close(self) -> None:
        """Hang up."""
        with suppress(RuntimeError):  # its loop has ended
            self._writer.close()


class Wires:
    """Connections to one port, those that were used last first."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Wire] = []

    async def take(self) -> Wire:
        """One that is not in use. Raises OSError where nobody listens."""
        while self._idle:
            wire = self._idle.pop()
            if wire.is_usable:
                return wire
            wire.close()
        return Wire(*await asyncio.open_connection("127.0.0.1", self._port, limit=_MOST_HEAD))

    def give_back(self, wire: Wire) -> None:
        """It may carry the next request."""
        if wire.is_usable:
            self._idle.append(wire)

    def close(self) -> None:
        """Hang up on all that are idle."""
        for each in self._idle:
            each.close()


async def exchange(wires: Wires, question: Question) -> Outcome:
    """Ask once, and say what came of it."""
    began = time.monotonic()
    wire: Wire | None = None
    try:
        async with asyncio.timeout(question.deadline + GRACE):
            wire = await wires.take()
            reused = wire.used
            status, headers, body = await wire.ask(question.encoded())
    except TimeoutError:
        fate = Fate.HUNG
    except (OSError, EOFError, asyncio.IncompleteReadError):
        fate = Fate.REFUSED if wire is None else Fate.RESET
    else:
        ended = time.monotonic()
        key, version, fault = _read(question, status, headers, body)
        wires.give_back(wire)
        return Outcome(
            began, ended, Fate.ANSWERED, wire.port, status, key, version, fault, wire.connected_at, reused
        )  # fmt: skip
    if wire is None:
        return Outcome(began, time.monotonic(), fate, 0)
    wire.close()
    return Outcome(began, time.monotonic(), fate, wire.port, connected_at=wire.connected_at, reused=wire.used)


def _read(
    question: Question, status: int, headers: dict[bytes, bytes], body: bytes
) -> tuple[bytes, str, str | None]:  # fmt: skip
    """The id and version that an answer names, and what is wrong with it."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return b"", "", f"{status} with a body that is no JSON"
    if status == 200:
        return UUID(answer["request_id"]).bytes, answer["model_version"], question.find_fault(answer)
    if "error" not in answer:
        return b"", "", f"{status} that does not name its error"
    if status in (429, 503) and int(headers.get(b"retry-after", b"0")) < 1:
        return b"", "", f"{status} that does not say when to ask again"
    return b"", "", None
