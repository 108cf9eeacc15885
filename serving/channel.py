"""Frames on the unix stream sockets between HTTP processes and workers, for both sides, and where those sockets lie."""

import hashlib
import os
import stat
import tempfile
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from serving.errors import BrokenChannel, SocketFolderUnusable

MAX_FRAME = 64 * 2**20
"""Bytes. More than any body may have once decoded; a length beyond it is garbage, not a large request."""

_HEADER = Struct("<IIQ")
_HELLO = Struct("<III")
# The kernel's limit is 107 bytes on Linux and 103 on macOS.
_LONGEST_ADDRESS = 103


class Kind(IntEnum):
    """What a frame is for. `id` in its header pairs an answer with its question, and is 0 where nothing is paired."""

    PING = 1  # to the worker: answer when your loop comes round
    PONG = 2  # from the worker, with the ping's id
    HELLO = 3  # from the worker, first of all: who it is
    GOAWAY = 4  # from the worker: I am about to end, move to my successor


class Frame(NamedTuple):
    """One message: its kind, the id it is paired by, and its contents."""

    kind: Kind
    id: int
    payload: bytes


def pack(kind: Kind, id: int = 0, payload: bytes = b"") -> bytes:
    """The frame as it travels: header (whole length, kind, id; 16 bytes, little-endian), then the payload."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, id) + payload


class Decoder:
    """Bytes in, in pieces of any size; whole frames out."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises BrokenChannel on what can be no frame; the stream is lost then."""
        # A piece usually holds whole frames: only what is left over is copied into the buffer.
        if not self._rest:
            frames, used = self._decode(data)
            self._rest += data[used:]
            return frames
        self._rest += data
        frames, used = self._decode(self._rest)
        del self._rest[:used]
        return frames

    def _decode(self, data: bytes | bytearray) -> tuple[list[Frame], int]:
        frames: list[Frame] = []
        at = 0
        while len(data) - at >= _HEADER.size:
            length, kind, pair = _HEADER.unpack_from(data, at)
            self._check(length)
            if len(data) - at < length:
                break
            frames.append(Frame(_known(kind), pair, bytes(data[at + _HEADER.size : at + length])))
            at += length
        return frames, at

    def _check(self, length: int) -> None:
        if not _HEADER.size <= length <= self._max_frame:
            raise BrokenChannel(f"a length of {length} bytes, where {_HEADER.size} to {self._max_frame} are possible")


def _known(kind: int) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        raise BrokenChannel(f"kind {kind} is unknown") from None


class Hello(NamedTuple):
    """Who a worker is: its process, its place among the workers, and which start of that place it is, from 1."""

    pid: int
    worker: int
    generation: int

    def pack(self) -> bytes:
        """The frame that says so."""
        return pack(Kind.HELLO, payload=_HELLO.pack(*self))

    @classmethod
    def unpack(cls, payload: bytes) -> "Hello":
        """From such a frame's payload. Raises BrokenChannel when it is none."""
        if len(payload) != _HELLO.size:
            raise BrokenChannel(f"a HELLO of {len(payload)} bytes")
        return cls(*_HELLO.unpack(payload))


class SocketFolder:
    """The folder of the workers' sockets, nobody else's to enter.

    A path too long for a unix socket is replaced by a short one in the system's folder for temporary files, with a
    name derived from the long one, so that the same data folder always comes to the same place.
    """

    def __init__(self, preferred: Path, port: int) -> None:
        self._port = port
        self._replaced = not self._fits(preferred)
        self.path = _short(preferred) if self._replaced else preferred
        if not self._fits(self.path):
            raise SocketFolderUnusable(str(self.path), "the path of a unix socket in it would be too long")

    def address(self, worker: int) -> str:
        """Where the worker listens."""
        return str(self.path / f"worker-{self._port}-{worker}")

    def open(self) -> None:
        """Make the folder, and remove what a data plane that was killed left in it. Raises SocketFolderUnusable."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(self.path)
            self._clear()
        except OSError as problem:
            raise SocketFolderUnusable(str(self.path), problem.strerror or str(problem)) from problem

    def close(self) -> None:
        """Remove our sockets, and the folder too if it is a replacement and nobody else uses it."""
        try:
            self._clear()
            if self._replaced:
                self.path.rmdir()
        except OSError:
            pass  # gone already, or a second data plane of the same folder is still there

    def _clear(self) -> None:
        # Only names with our port: we hold that port, so nobody alive listens under them.
        for leftover in self.path.glob(f"worker-{self._port}-*"):
            leftover.unlink(missing_ok=True)

    @staticmethod
    def _fits(folder: Path) -> bool:
        # Longest of all: the name a worker binds first, with its pid behind it.
        return len(os.fsencode(folder / "worker-65535-255.4194304")) <= _LONGEST_ADDRESS


def _short(preferred: Path) -> Path:
    digest = hashlib.blake2b(os.fsencode(preferred), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"switchyard-{digest}"


def _check_private(folder: Path) -> None:
    # In a shared folder somebody else may have made the name before us, and would then own the way to our workers.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    folder.chmod(0o700)
