"""The worker's end of one connection: whole frames in, and out whatever the other side does not take at once."""

import contextlib
import selectors
import socket
import time
from collections.abc import Callable

from serving.channel import Decoder, Frame

_READ_SIZE = 2**18
CHOKED_AT, FREE_AT = 4 * 2**20, 2**20
"""Unsent bytes from which on a peer's questions are not read, and down to which they are not read again."""
GIVEN_UP_AFTER = 30.0
"""Seconds after which a choked peer that has taken nothing is given up."""


class Peer:
    """One HTTP process or the agent. Never blocks: what it does not take waits in a buffer.

    While much waits it is `choked`: nothing is read from it, and nothing should be computed for it. So the buffer holds no
    more than what was being answered when it began, and nobody else is held up.
    """

    def __init__(self, connection: socket.socket, watch: Callable[[int], None]) -> None:
        """`watch`: have the selector look for these events from now on."""
        connection.setblocking(False)
        self.connection = connection
        self.choked = False
        self._watch = watch
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._moved = time.monotonic()

    @property
    def given_up_at(self) -> float:
        """When it is to be dropped unless it takes something by then, monotonic seconds; of a choked one."""
        return self._moved + GIVEN_UP_AFTER

    def receive(self) -> list[Frame] | None:
        """The frames that are there; None when the peer has closed. Raises BrokenChannel and OSError."""
        data = self.connection.recv(_READ_SIZE)
        return self._decoder.feed(data) if data else None

    def send(self, data: bytes) -> None:
        """Send now what fits, the rest when there is room."""
        if not self._unsent:
            self._moved = time.monotonic()
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Send of what waits as much as there is room for."""
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self.connection.send(self._unsent)]
            self._moved = time.monotonic()
        self.choked = len(self._unsent) > (FREE_AT if self.choked else CHOKED_AT)
        self._watch((0 if self.choked else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self._unsent else 0))
