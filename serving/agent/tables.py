"""The agent's side towards the HTTP processes: each gets every table, and says when it counts."""

import asyncio
from collections.abc import Callable
from typing import cast

import orjson

from serving.agent.route_table import Table
from serving.channel import Decoder, Frame, Kind, listen_at, pack
from serving.errors import BrokenChannel
from serving.logs import logger

_MAX_UNSENT = 16 * 2**20

log = logger(__name__)


class TableServer:
    """Listens for HTTP processes, and pushes the table to them. Make it inside the running event loop."""

    def __init__(self, address: str, processes: int, seek: Callable[[Frame, Callable[[bytes], None]], None]) -> None:
        """`processes`: how many HTTP processes there should be. `seek` takes a SEEK frame, and what sends its answer."""
        self.seek = seek
        self._address = address
        self._processes = processes
        self._peers: set[_Peer] = set()
        self._server: asyncio.Server | None = None
        self._frame: bytes | None = None
        self._version: tuple[int, dict[str, int]] = (0, {})

    @property
    def applied(self) -> tuple[int, dict[str, int]] | None:
        """Generation and revisions of the routes in force everywhere; None while some HTTP process lacks them."""
        generation, _ = self._version
        if self._frame is None or len(self._peers) < self._processes:
            return None
        return self._version if all(peer.applied == generation for peer in self._peers) else None

    async def start(self) -> None:
        """Take the address, from a predecessor too if one is still there."""
        listener = listen_at(self._address)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Peer(self), sock=listener)

    def push(self, table: Table) -> None:
        """From now on this is the table."""
        version = (table["generation"], {name: each["revision"] for name, each in table["models"].items()})
        if version != self._version:
            for peer in self._peers:
                peer.applied = None
        self._version = version
        self._frame = pack(Kind.TABLE, payload=orjson.dumps(table))
        for peer in list(self._peers):
            peer.send(self._frame)

    def close(self) -> None:
        """Let go of every HTTP process; the table they have stays in force."""
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.close()

    def joined(self, peer: "_Peer") -> None:
        """An HTTP process has connected."""
        self._peers.add(peer)
        if self._frame is not None:
            peer.send(self._frame)

    def left(self, peer: "_Peer") -> None:
        """It has gone."""
        self._peers.discard(peer)


class _Peer(asyncio.Protocol):
    """One HTTP process."""

    def __init__(self, server: TableServer) -> None:
        self.applied: int | None = None
        """The generation it routes by."""
        self._server = server
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for frame in self._decoder.feed(data):
                if frame.kind is Kind.APPLIED:
                    self.applied = int(orjson.loads(frame.payload)["generation"])
                elif frame.kind is Kind.SEEK:
                    self._server.seek(frame, self.send)
        except (BrokenChannel, ValueError, TypeError, KeyError) as problem:
            log.warning("line to an HTTP process closed", reason=str(problem)[:300])
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by the event loop."""
        self._server.left(self)

    def send(self, frame: bytes) -> None:
        """Send without waiting. One that does not read is let go; it connects again when it is well."""
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > _MAX_UNSENT:
            log.warning("an HTTP process does not read, its line was closed")
            self._transport.abort()
            return
        self._transport.write(frame)

    def close(self) -> None:
        """Let go."""
        if self._transport is not None:
            self._transport.close()
