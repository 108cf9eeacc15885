"""The load generator's own process: raw sockets, one event loop by hand, no wait longer than a microsecond too long.

Its entry is benchmarks/serving/generate.py; it imports nothing heavy. Closed loop: each connection asks again as soon as it is answered. Open loop: requests arrive when they arrive,
and their time counts from the moment they were due, also while no connection was free.
"""

import random
import selectors
import socket
import time
from array import array
from collections import deque
from dataclasses import dataclass, field

from benchmarks.serving.alarm import Alarm

_GIVE_UP_SECONDS = 10.0
_AT_ONCE = 16  # requests sent in a row before answers are looked at
_RECEIVE = 65_536
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True)
class Order:
    """What to do. `rate` in requests per second for the open loop; None for the closed one."""

    address: tuple[str, int]
    requests: list[bytes]
    connections: int
    seconds: float
    rate: float | None = None
    seed: int = 0


@dataclass
class Log:
    """What happened; all times in seconds."""

    times: "array[float]" = field(default_factory=lambda: array("d"))  # of each answer with 200, in order of completion
    done: "array[float]" = field(default_factory=lambda: array("d"))  # when that was, since the beginning
    refused: "array[float]" = field(default_factory=lambda: array("d"))  # times of answers with 429
    refused_sent: "array[float]" = field(default_factory=lambda: array("d"))  # the same since they were sent
    late: "array[float]" = field(
        default_factory=lambda: array("d")
    )  # of each request: how long after it was due we came to it
    errors: dict[str, int] = field(default_factory=dict)
    retry_after: dict[str, int] = field(default_factory=dict)
    held_back: int = 0
    cpu: float = 0.0

    def failed(self, what: str) -> None:
        """Count it."""
        self.errors[what] = self.errors.get(what, 0) + 1


class _Connection:
    """One keep-alive connection with one request under way at a time."""

    __slots__ = ("began", "busy", "received", "sent", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began, self.sent, self.busy, self.received = 0.0, 0.0, False, b""

    def ask(self, request: bytes, began: float) -> None:
        """Send; `began` is when the time of this request began. It fits into the socket's buffer: nothing else is there."""
        self.began, self.sent, self.busy = began, time.perf_counter(), True
        self.socket.sendall(request)

    def answer(self) -> bytes | None:
        """A whole answer, or None as long as something of it is missing. Raises ConnectionError when it is lost."""
        piece = self.socket.recv(_RECEIVE)
        if not piece:
            raise ConnectionResetError
        received = self.received + piece if self.received else piece
        end = end_of_answer(received)
        if end is None or len(received) < end:
            self.received = received
            return None
        self.received, self.busy = b"", False
        return received


class Generator:
    """One measurement."""

    def __init__(self, order: Order) -> None:
        """Connects; `run` begins."""
        self._order = order
        self._log = Log()
        self._selector = selectors.DefaultSelector()
        self._alarm = Alarm(self._selector)
        self._free = [self._connect() for _ in range(order.connections)]
        self._waiting: deque[float] = deque()
        self._under_way = 0
        self._next = 0
        self._began = 0.0
        self._ends = 0.0

    def run(self) -> Log:
        """Ask for as long as ordered, then wait for what is under way."""
        self._began = time.perf_counter()
        cpu = time.process_time()
        self._ends = self._began + self._order.seconds
        if self._order.rate is None:
            self._closed()
        else:
            self._open(self._order.rate)
        self._log.cpu = time.process_time() - cpu
        self._settle()
        return self._log

    def _closed(self) -> None:
        while self._free:
            self._ask(self._free.pop(), time.perf_counter())
        while (left := self._ends - time.perf_counter()) > 0:
            self._receive(left)
            now = time.perf_counter()
            while self._free and now < self._ends:
                self._ask(self._free.pop(), now)

    def _open(self, rate: float) -> None:
        chance = random.Random(self._order.seed)
        due = self._began + chance.expovariate(rate)
        while due < self._ends:
            sent = 0
            while (late := time.perf_counter() - due) >= 0 and due < self._ends and sent < _AT_ONCE:
                self._log.late.append(late)
                self._arrive(due)
                due += chance.expovariate(rate)
                sent += 1
            self._receive(min(due, self._ends) - time.perf_counter())

    def _arrive(self, due: float) -> None:
        if self._free:
            self._ask(self._free.pop(), due)
        else:
            self._log.held_back += 1
            self._waiting.append(due)

    def _ask(self, connection: _Connection, began: float) -> None:
        request = self._order.requests[self._next]
        self._next = (self._next + 1) % len(self._order.requests)
        self._under_way += 1
        try:
            connection.ask(request, began)
        except ConnectionError:
            self._lost(connection)

    def _receive(self, seconds: float) -> None:
        """Look at what has come, waiting for it so long at most."""
        for key, _ in self._alarm.select(seconds):
            connection: _Connection = key.data
            try:
                answer = connection.answer()
            except ConnectionError:
                self._lost(connection)
                continue
            if answer is not None:
                self._under_way -= 1
                self._note(connection, answer)
                self._release(connection)

    def _release(self, connection: _Connection) -> None:
        if self._waiting:
            self._ask(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def _note(self, connection: _Connection, answer: bytes) -> None:
        now = time.perf_counter()
        status = answer[9:12]
        if status == b"200":
            self._log.times.append(now - connection.began)
            self._log.done.append(now - self._began)
            return
        self._log.failed(status.decode())
        if status == b"429":
            self._log.refused.append(now - connection.began)
            self._log.refused_sent.append(now - connection.sent)
            told = header(answer, b"retry-after") or "none"
            self._log.retry_after[told] = self._log.retry_after.get(told, 0) + 1

    def _lost(self, connection: _Connection) -> None:
        """The server has hung up. What was under way on it has failed, and another connection takes its place."""
        if connection.busy:
            self._under_way -= 1
            self._log.failed("connection lost")
        self._selector.unregister(connection.socket)
        connection.socket.close()
        try:
            self._release(self._connect())
        except OSError:
            self._log.failed("connection refused")

    def _connect(self) -> _Connection:
        connection = _Connection(self._order.address)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _settle(self) -> None:
        until = time.perf_counter() + _GIVE_UP_SECONDS
        while (self._under_way or self._waiting) and (left := until - time.perf_counter()) > 0:
            self._receive(left)
        for _ in range(self._under_way):
            self._log.failed("never answered")
        for _ in self._waiting:
            self._log.failed("never sent")


def end_of_answer(received: bytes) -> int | None:
    """Bytes of the whole answer at the beginning of this; None as long as its head is not complete.

    Raises:
        ValueError: an answer that does not say how long it is.
    """
    head = received.find(_END_OF_HEAD)
    if head < 0:
        return None
    length = header(received[: head + 2], b"content-length")
    if length is None:
        raise ValueError("an answer without content-length")
    return head + len(_END_OF_HEAD) + int(length)


def header(answer: bytes, name: bytes) -> str | None:
    """The value of a header of this answer; `name` in lower case."""
    head = answer[: answer.find(_END_OF_HEAD) + 2] if _END_OF_HEAD in answer else answer
    at = head.lower().find(b"\r\n" + name + b":")
    if at < 0:
        return None
    start = at + len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip().decode("latin-1")
