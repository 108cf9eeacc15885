"""One stream of one HTTP process: read in batches, each stored in one transaction that also says how far it was read."""

import time
from contextlib import suppress
from struct import error as StructError  # noqa: N812  # it is a class
from typing import Any

import msgspec
from sqlalchemy.exc import DataError, IntegrityError, StatementError
from sqlmodel import Session

from serving.ids import time_of
from serving.logs import logger
from serving.shipper.batch import Batch, Format, take
from serving.shipper.durability import Durability
from serving.spool import StreamFolder, framed, read_frames
from serving.store import Database
from serving.store.prediction_writes import Losses, Position, lock_position, move_position, read_position

log = logger(__name__)


class Stream:
    """The common part; subclasses say what the records are and how they are stored."""

    most: int
    """Rows in one transaction."""
    format: Format
    late_after: float
    """Seconds that a request may wait here while others are served first; older ones are stored at their expense."""

    def __init__(self, folder: StreamFolder, source: str) -> None:
        """`source`: the data plane's name, which its streams are known by in the database."""
        self.folder = folder
        self._source = source
        self._identity: str | None = None
        self._position: Position | None = None  # as the database has it; None: to be asked
        self._batch: Batch | None = None
        self._prepared: Any = None
        self._found = b""
        self._limit = self.most
        self._damaged: set[int] = set()

    @property
    def source(self) -> str:
        """The HTTP process that wrote it: its slot, and the identity of what it has written."""
        return f"{self._source}/{self.folder.path.parent.name}/{self._identity}"

    @property
    def name(self) -> str:
        """The stream, as the database knows it."""
        return f"{self.source}/{self.folder.path.name}"

    @property
    def head(self) -> bytes:
        """The id of the first request to be stored, which orders streams by time."""
        parts = self._batch.parts if self._batch else ()
        return parts[0].record.id if parts else b""

    def is_late(self) -> bool:
        """Whether the first request that was found last, stored meanwhile or not, had waited too long."""
        return bool(self._found) and time.time() - time_of(self._found) / 1000 > self.late_after

    def look(self, database: Database, *, patient: bool) -> bool:
        """Whether there is something to store, all prepared for it; `patient` leaves alone what may wait for company.

        Raises:
            DatabaseUnavailable: how far it was read cannot be asked.
            OSError: the spool cannot be read.
        """
        if self._batch is None:
            self._batch = batch = self._read(database, patient=patient)
            self._found = b"" if batch is None else self.head or self._found
            # What is refused here is refused again when it is to be stored, and then isolated.
            with suppress(OverflowError, UnicodeError, StructError):
                self._prepared = self.prepare(batch, database.dialect) if batch is not None and batch.parts else None
        return self._batch is not None

    def ship(self, database: Database, durability: Durability) -> bool:
        """Store what `look` found, in one transaction. Whether there was more.

        Raises:
            DatabaseUnavailable: nothing was stored, or all of it: `forget`, and the database will be asked which.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            return False
        try:
            stored = self._store(database, durability, batch)
        except (StatementError, OverflowError, UnicodeError, StructError) as error:
            if not _is_refusal(error):
                raise
            self._isolate(batch, error)
            return True
        if stored:
            self._position = batch.to
            self._limit = min(self.most, self._limit * 2)
            self.folder.note_shipped(batch.to.segment, batch.to.offset)
        else:
            self.forget()
        return batch.more

    def forget(self) -> None:
        """Ask the database again how far it got."""
        self._batch = self._position = self._prepared = None

    def is_ready(self, waiting: int) -> bool:  # noqa: ARG002  # for subclasses
        """Whether so many waiting bytes of the last segment are to be stored by now."""
        return True

    def prepare(self, batch: Batch, dialect: str) -> Any:
        """What can be done before the transaction, which must be short, in a database of this kind.

        Raises:
            OverflowError, UnicodeError, struct.error: a record that it cannot hold.
        """
        raise NotImplementedError

    def write(self, session: Session, prepared: Any) -> int:
        """Store; how many records were left out because they repeat what is stored."""
        raise NotImplementedError

    def _store(self, database: Database, durability: Durability, batch: Batch) -> bool:
        """False when somebody else has moved the position: nothing was stored then."""
        if batch.refused:
            self._keep_aside(batch)
        prepared, self._prepared = self._prepared, None
        if prepared is None and batch.parts:
            prepared = self.prepare(batch, database.dialect)
        crosses = batch.to.segment != batch.origin.segment
        if crosses:
            # After a power cut the database must not point into a segment whose name did not survive: the next one
            # would get that number, and be taken for read.
            self.folder.sync()
        with durability.of_commit(full=crosses), database.writing() as session:
            if lock_position(session, self.name) != batch.origin:
                return False
            repeated = self.write(session, prepared) if batch.parts else 0
            move_position(session, self.name, batch.to, batch.losses._replace(repeated=repeated))
        return True

    def _read(self, database: Database, *, patient: bool) -> Batch | None:
        segments = self.folder.segments()
        # Only now: a new identity is written before its first segment, so these cannot be younger than it.
        self._recognise(self.folder.identity())
        if self._identity is None or not segments:
            return None
        if self._position is None:
            with database.reading() as session:
                self._position = read_position(session, self.name)
        self._remove_stored(segments, self._position)
        ahead = [number for number in segments if number >= self._position.segment]
        try:
            return self._read_segment(self._position, ahead, patient=patient) if ahead else None
        except FileNotFoundError:  # dropped just now, for want of room
            return None

    def _read_segment(self, origin: Position, ahead: list[int], *, patient: bool) -> Batch | None:
        # Where segments are missing: dropped for want of room, or this is the first look.
        at = origin if ahead[0] == origin.segment else Position(ahead[0])
        path, is_last = self.folder.segment(at.segment), len(ahead) == 1
        size = path.stat().st_size
        if is_last and (size <= at.offset or (patient and not self.is_ready(size - at.offset))):
            return None
        found = read_frames(path, at.offset)
        if found.frames:
            batch = take(origin, at, found.frames, self._limit, self.format)
            if batch.losses.torn:
                self._damaged.add(at.segment)
            return batch._replace(more=not is_last or batch.to.taken > 0 or batch.to.offset < size)
        if found.torn:
            return Batch(origin, Position(at.segment, found.end), losses=Losses(found.torn), more=not is_last)
        # Only behind a writer that is gone. A later segment alone says nothing: a process that is being replaced writes
        # on beside its successor.
        return Batch(origin, Position(ahead[1]), more=True) if found.final and not is_last else None

    def _recognise(self, identity: str | None) -> None:
        if identity != self._identity:
            self._identity = identity
            self.forget()

    def _remove_stored(self, segments: list[int], position: Position) -> None:
        """Those that lie behind us: the transaction that stepped past them is safe on disk. Never the newest."""
        for number in segments[:-1]:
            if number < position.segment:
                self.folder.remove(number, damaged=number in self._damaged)
                self._damaged.discard(number)

    def _isolate(self, batch: Batch, error: Exception) -> None:
        """The database refuses something in this batch: try with half of it, and pass over a request that is alone."""
        self._limit = max(1, batch.rows // 2)
        if batch.rows > 1:
            return
        # The kind of error only: its text may quote what the request carried.
        log.error("record of the prediction log refused", stream=self.name, problem=type(error).__name__)
        body = msgspec.msgpack.encode([part.record for part in batch.parts])
        self._batch = Batch(
            batch.origin, batch.past, losses=batch.losses._replace(dropped=1), refused=body, more=batch.more
        )

    def _keep_aside(self, batch: Batch) -> None:
        name = f"{batch.to.segment:012d}-{batch.to.offset}-{batch.to.taken}"
        try:
            self.folder.keep_aside(name, b"".join(framed(batch.refused)))
            log.error("record of the prediction log kept aside", stream=self.name, file=f"{name}.bad")
        except OSError as problem:  # a full disk; to wait for room would hold up everything behind it
            log.error("refused record could not be kept", stream=self.name, problem=str(problem))  # noqa: TRY400


def _is_refusal(error: Exception) -> bool:
    """Whether it is the record's fault. Whatever else goes wrong, with the database or with us, must lose nothing."""
    if isinstance(error, StatementError):
        return isinstance(error, DataError | IntegrityError) or type(error) is StatementError
    return True
