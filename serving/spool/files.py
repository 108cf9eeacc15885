"""The folder of one stream: numbered segments, the stream's own name, and small notes beside them."""

import contextlib
import fcntl
import os
import secrets
import time
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812  # it is a class

from serving.folders import make_folder, sync_folder

_IDENTITY = "identity"
_SHIPPED = "shipped"
_DROPPED = "dropped"
_OPENING = "opening-"
_POSITION = Struct("<QQ")
_COUNT = Struct("<Q")
_ABANDONED_AFTER = 60.0


class StreamFolder:
    """Where one stream of one process lies. Segment numbers only grow, and the highest is never removed by a reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def segment(self, number: int) -> Path:
        """The file of a segment."""
        return self.path / f"{number:012d}.seg"

    def segments(self) -> list[int]:
        """Numbers of the segments that are there, oldest first; none where there is no folder."""
        try:
            names = os.listdir(self.path)  # noqa: PTH208  # ten times as fast, and asked ten times a second
        except OSError:
            return []
        return sorted(int(name[:-4]) for name in names if name.endswith(".seg") and name[:-4].isdecimal())

    def set_aside(self) -> list[Path]:
        """Files that were kept for somebody to look at: damaged segments, records that the database refused."""
        return sorted(self.path.glob("*.bad"))

    def keep_aside(self, name: str, content: bytes) -> None:
        """Keep something for somebody to look at, as `<name>.bad`. Raises OSError."""
        (self.path / f"{name}.bad").write_bytes(content)

    def remove(self, number: int, *, damaged: bool) -> None:
        """Remove a segment that is stored; a damaged one is kept aside. Raises OSError."""
        path = self.segment(number)
        with contextlib.suppress(FileNotFoundError):
            if damaged:
                path.rename(path.with_suffix(".bad"))
            else:
                path.unlink()

    def identity(self) -> str | None:
        """The stream's own name; None while there is no writer yet.

        The database remembers by it how far the stream was read. It is a new one whenever the folder has lost its
        segments: their numbers begin anew then, and would be taken for those that were stored long ago.
        """
        try:
            return (self.path / _IDENTITY).read_text() or None
        except OSError:
            return None

    def prepare(self) -> None:
        """Make folder and name for a writer. Raises OSError."""
        make_folder(self.path)
        for left in self.path.glob(f"{_OPENING}*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
                    left.unlink()
        if self.identity() is None or not self.segments():
            self._write_identity(secrets.token_hex(8))

    def open_segment(self) -> tuple[int, int]:
        """A new segment, locked, as (number, descriptor). Raises OSError."""
        # Under another name until it is locked: without a lock a reader would take it for finished, and pass it by.
        opening = self.path / f"{_OPENING}{os.getpid()}-{secrets.token_hex(4)}"
        descriptor = os.open(opening, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return self._publish(opening), descriptor
        except OSError:
            os.close(descriptor)
            raise
        finally:
            opening.unlink(missing_ok=True)

    def sync(self) -> None:
        """Have the names of new segments survive a power cut. Raises OSError."""
        sync_folder(self.path)

    def note_shipped(self, segment: int, offset: int) -> None:
        """How far the stream is in the database: a note for `spool_state`, the truth is in the database itself."""
        self._note(_SHIPPED, _POSITION.pack(segment, offset))

    def shipped(self) -> tuple[int, int]:
        """What `note_shipped` wrote last: segment and offset."""
        segment, offset = self._noted(_SHIPPED, _POSITION)
        return segment, offset

    def note_dropped(self, count: int) -> None:
        """How many records were dropped, all in all."""
        self._note(_DROPPED, _COUNT.pack(count))

    def dropped(self) -> int:
        """What `note_dropped` wrote last."""
        return self._noted(_DROPPED, _COUNT)[0]

    def _publish(self, opening: Path) -> int:
        number = max([*self.segments(), self.shipped()[0]])
        while True:
            number += 1
            # Fails where the name is taken: by a predecessor that has not ended yet.
            with contextlib.suppress(FileExistsError):
                os.link(opening, self.segment(number))
                return number

    def _write_identity(self, name: str) -> None:
        new = self.path / f"{_IDENTITY}.{os.getpid()}"
        with new.open("w") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.path / _IDENTITY)
        self.sync()

    def _note(self, name: str, content: bytes) -> None:
        """In place: once it is there it needs no room, so that it can be written on a full disk."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path / name, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.pwrite(descriptor, content, 0)
            finally:
                os.close(descriptor)

    def _noted(self, name: str, struct: Struct) -> tuple[int, ...]:
        try:
            return struct.unpack((self.path / name).read_bytes())
        except (OSError, StructError):
            return (0,) * (struct.size // 8)
