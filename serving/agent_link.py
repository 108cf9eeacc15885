"""The HTTP process's line to the agent: tables of routes come in, and are confirmed once they are in force."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import orjson

from serving.catalogue import Catalogue
from serving.channel import Decoder, Frame, Kind, pack
from serving.errors import BrokenChannel
from serving.logs import logger
from serving.routing import RoutingTable

_RECONNECT_AFTER = 0.1
_FIRST_TABLE = 0.5
_MAX_UNSENT = 2**20

log = logger(__name__)


class AgentLink:
    """Keeps a catalogue up to date. Without an agent the last table stays in force, that of the snapshot at first."""

    def __init__(
        self, address: str, snapshot: Path, catalogue: Catalogue, on_applied: Callable[[], None] = lambda: None
    ) -> None:
        """`on_applied` is called after each table that is put in force."""
        self._on_applied = on_applied
        self._address = address
        self._snapshot = snapshot
        self._catalogue = catalogue
        self._keeper: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self._line: _Line | None = None
        self._on_found: Callable[[Frame], None] = lambda _: None
        self._on_lost: Callable[[], None] = lambda: None

    def on_found(self, take: Callable[[Frame], None], lost: Callable[[], None]) -> None:
        """Who is given FOUND frames, and is told when the line that they would have come on is lost."""
        self._on_found, self._on_lost = take, lost

    def send(self, frame: bytes) -> bool:
        """Give the agent a frame; whether there is one to give it to."""
        return self._line is not None and self._line.send(frame)

    async def start(self) -> None:
        """Connect, and stay connected. Returns once a table is in force, after half a second at the latest."""
        self._apply_snapshot()
        self._keeper = asyncio.create_task(self._keep())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._known.wait(), _FIRST_TABLE)

    async def close(self) -> None:
        """Let go."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def apply(self, payload: bytes) -> bytes | None:
        """Put a table in force; the frame that confirms it, or None when it is none, or not the latest.

        An agent that has started without the database knows a snapshot only, which may be older than what is in force
        here. Once the database is there its word counts, also where its generation is a lower one: of a backup.
        """
        try:
            said = orjson.loads(payload)
            table = RoutingTable.from_json(said)
            certain = bool(said.get("certain", True))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            log.error("a table of routes could not be read, the one before stays", problem=repr(problem)[:300])  # noqa: TRY400
            return None
        before = self._catalogue.generation
        if not certain and before is not None and table.generation < before:
            log.warning("a table of an older snapshot is not taken", generation=table.generation, in_force=before)
            return None
        self._catalogue.apply(table)
        self._on_applied()
        self._known.set()
        return pack(Kind.APPLIED, payload=orjson.dumps({"generation": table.generation}))

    def found(self, frame: Frame) -> None:
        """Hand on what the database knows. Raises BrokenChannel."""
        self._on_found(frame)

    def _apply_snapshot(self) -> None:
        with contextlib.suppress(OSError):  # there is none before the first table
            self.apply(self._snapshot.read_bytes())

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            line = _Line(self)
            try:
                await loop.create_unix_connection(lambda line=line: line, self._address)  # type: ignore[misc]
                self._line = line
                await line.lost
            except OSError:
                pass  # not there yet
            except asyncio.CancelledError:
                line.close()
                raise
            self._line = None
            self._on_lost()
            await asyncio.sleep(_RECONNECT_AFTER)


class _Line(asyncio.Protocol):
    """One connection to the agent."""

    def __init__(self, link: AgentLink) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link = link
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except BrokenChannel as problem:
            log.warning("line to the agent closed", reason=problem.detail)
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by the event loop."""
        if not self.lost.done():
            self.lost.set_result(None)

    def close(self) -> None:
        """Let go."""
        if self._transport is not None:
            self._transport.close()

    def send(self, frame: bytes) -> bool:
        """Without waiting; False where the agent does not read."""
        if self._transport is None or self._transport.get_write_buffer_size() > _MAX_UNSENT:
            return False
        self._transport.write(frame)
        return True

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.FOUND:
            self._link.found(frame)
        elif frame.kind is Kind.TABLE:
            confirmation = self._link.apply(frame.payload)
            if confirmation is not None and self._transport is not None:
                self._transport.write(confirmation)
