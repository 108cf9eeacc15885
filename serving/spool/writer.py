"""Writing the two streams of one HTTP process, within a bound of bytes."""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from serving.spool.files import StreamFolder
from serving.spool.frames import count_records, framed

PREDICTIONS, PAYLOADS = "predictions", "payloads"
"""The streams, by the name of their folders."""

_SEGMENT_BYTES = 8 << 20
_SEGMENTS_AT_LEAST = 8
_SYNC_SECONDS = 1.0
_REOPEN_SECONDS = 0.1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class SpoolWriter:
    """One stream. What `append` returned True for survives the death of this process, though no power cut yet.

    `make_room` is called before each new segment.
    """

    def __init__(self, folder: StreamFolder, segment_bytes: int, make_room: Callable[[], None]) -> None:
        self.folder = folder
        self.records_in: dict[int, int] = {}
        """Records of each segment that this process has written."""
        self.lacks_room = False
        """Whether the last `append` failed for want of room on the disk, and of nothing else."""
        self._segment_bytes = segment_bytes
        self._make_room = make_room
        self._descriptor: int | None = None
        self._number = 0
        self._position = 0
        self._retry_at = 0.0
        self._finished: list[int] = []
        self._new_name = False

    def append(self, body: bytes, records: int) -> bool:
        """Write a frame with so many records. False when it could not be written; nothing of it is left then."""
        self.lacks_room = False
        descriptor = self._open_one()
        if descriptor is None:
            return False
        frame = framed(body)
        size = len(frame[0]) + len(body)
        try:
            written = os.writev(descriptor, frame)
        except OSError as problem:
            written = 0
            self.lacks_room = problem.errno in _NO_ROOM
        if written != size:
            self.lacks_room = self.lacks_room or written > 0  # it took a part, and then no more
            self._take_back(descriptor)
            return False
        self._position += size
        self.records_in[self._number] = self.records_in.get(self._number, 0) + records
        if self._position >= self._segment_bytes:
            self._finish()
        return True

    def retry_now(self) -> None:
        """Try again at once with the next `append`: what was missing may be there."""
        self._retry_at = 0.0

    @property
    def number(self) -> int:
        """Of the segment that is being written; 0 before the first."""
        return self._number

    def sync(self) -> None:
        """Have everything written so far survive a power cut. From one thread only, which may be another one."""
        if self._new_name:
            self._new_name = False
            with contextlib.suppress(OSError):
                self.folder.sync()
        # Only here descriptors are closed, so that none is closed while it is being synced.
        while self._finished:
            descriptor = self._finished.pop(0)
            with contextlib.suppress(OSError):
                os.fdatasync(descriptor)
            os.close(descriptor)
        current = self._descriptor
        if current is not None:
            with contextlib.suppress(OSError):
                os.fdatasync(current)

    def close(self) -> None:
        """Finish the segment. Call `sync` afterwards."""
        self._finish()

    def _open_one(self) -> int | None:
        if self._descriptor is None and time.monotonic() >= self._retry_at:
            try:
                self._make_room()
                self.folder.prepare()
                self._number, self._descriptor = self.folder.open_segment()
                self._position = 0
                self._new_name = True
                there = set(self.folder.segments())
                self.records_in = {number: count for number, count in self.records_in.items() if number in there}
            except OSError as problem:
                self.lacks_room = problem.errno in _NO_ROOM
                self._retry_at = time.monotonic() + _REOPEN_SECONDS
        return self._descriptor

    def _take_back(self, descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, self._position)
        except OSError:  # a reader passes over what is left of the frame
            self._finish()

    def _finish(self) -> None:
        if self._descriptor is None:
            return
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # now: its closing may have to wait for the disk
        self._finished.append(self._descriptor)
        self._descriptor = None


class Spool:
    """Both streams of one process in one folder, in `max_bytes` together.

    There is no fixed share for either: what there is room for is kept, and when it is used up the oldest payloads go,
    a segment at a time; only when there are none, the oldest predictions. `on_dropped` is told the stream and how many
    records; those of a segment count in full, also where some were in the database already.
    """

    def __init__(self, folder: Path, max_bytes: int, on_dropped: Callable[[str, int], None]) -> None:
        self._max_bytes = max_bytes
        self._on_dropped = on_dropped
        segment_bytes = min(_SEGMENT_BYTES, max_bytes // _SEGMENTS_AT_LEAST)
        # Two segments are being written, and each may become as large as that.
        self._budget = max_bytes - 2 * segment_bytes
        streams = [StreamFolder(folder / name) for name in (PREDICTIONS, PAYLOADS)]
        self.predictions, self.payloads = (SpoolWriter(each, segment_bytes, self._make_room) for each in streams)
        self._dropped = {each.path.name: each.dropped() for each in streams}
        self._stop = threading.Event()
        self._syncing = threading.Thread(target=self._sync_loop, name="spool-sync", daemon=True)
        self._syncing.start()

    def drop(self, stream: str, records: int) -> None:
        """Count records that are not kept."""
        self._dropped[stream] += records
        writer = self.predictions if stream == PREDICTIONS else self.payloads
        writer.folder.note_dropped(self._dropped[stream])
        self._on_dropped(stream, records)

    def sacrifice_payloads(self) -> bool:
        """Drop the oldest segment of payloads, so that predictions which found no room on the disk may find some.

        False where there is none, and where room is not what predictions lack.
        """
        if not self.predictions.lacks_room:
            return False
        oldest = next(self._old_segments(self.payloads), None)
        if oldest is None:
            return False
        self._drop_segment(self.payloads, oldest)
        self.predictions.retry_now()
        return True

    def close(self) -> None:
        """Finish both streams and have them survive a power cut."""
        self.predictions.close()
        self.payloads.close()
        self._stop.set()
        self._syncing.join()

    def _make_room(self) -> None:
        """Drop the oldest until the rest is within the budget: what somebody may look at, payloads, predictions."""
        excess = self._bytes() - self._budget
        for writer in (self.payloads, self.predictions):
            for path in writer.folder.set_aside() if excess > 0 else ():
                excess -= _size(path)
                path.unlink(missing_ok=True)
        for writer in (self.payloads, self.predictions):
            for number in self._old_segments(writer):
                if excess <= 0:
                    return
                excess -= _size(writer.folder.segment(number))
                self._drop_segment(writer, number)

    def _bytes(self) -> int:
        folders = [self.predictions.folder, self.payloads.folder]
        paths = [each.segment(number) for each in folders for number in each.segments()]
        return sum(_size(path) for path in [*paths, *folders[0].set_aside(), *folders[1].set_aside()])

    def _old_segments(self, writer: SpoolWriter) -> Iterator[int]:
        """Oldest first, without the newest: the next number follows from it."""
        return iter(writer.folder.segments()[:-1])

    def _drop_segment(self, writer: SpoolWriter, number: int) -> None:
        path = writer.folder.segment(number)
        records = writer.records_in.pop(number, None)
        records = count_records(path) if records is None else records
        try:
            path.unlink()
        except OSError:  # shipped just now
            return
        self.drop(writer.folder.path.name, records)

    def _sync_loop(self) -> None:
        ended = False
        while not ended:
            ended = self._stop.wait(_SYNC_SECONDS)
            for writer in (self.predictions, self.payloads):
                writer.sync()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
