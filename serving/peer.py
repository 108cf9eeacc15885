"""The worker's end of one connection: whole frames in, and out whatever the other side does not take at once."""

import contextlib
import selectors
import socket
from collections.abc import Callable

from serving.channel import Decoder, Frame
from serving.errors import BrokenChannel

_READ_SIZE = 2**18
_MAX_UNSENT = 16 * 2**20


class Peer:
    """One HTTP process or the agent. Never blocks: what it does not take waits in a buffer."""

    def __init__(self, connection: socket.socket, watch: Callable[[int], None]) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._watch = watch
        self._decoder = Decoder()
        self._unsent = bytearray()

    def receive(self) -> list[Frame] | None:
        """The frames that are there; None when the peer has closed. Raises BrokenChannel and OSError."""
        data = self.connection.recv(_READ_SIZE)
        return self._decoder.feed(data) if data else None

    def send(self, data: bytes) -> None:
        """Send now what fits, the rest when there is room. Raises BrokenChannel when the peer has stopped reading."""
        # Looked at before, not after: a single answer may be larger than what should ever pile up.
        if len(self._unsent) > _MAX_UNSENT:
            raise BrokenChannel(f"the peer does not read, {len(self._unsent)} bytes wait for it")
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Send of what waits as much as there is room for."""
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self.connection.send(self._unsent)]
        self._watch(selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0))
