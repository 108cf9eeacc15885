"""Frames on the unix stream sockets between HTTP processes and workers, for both sides, and where those sockets lie."""

import hashlib
import os
import socket
import stat
import struct
import tempfile
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import NamedTuple, NoReturn

import msgspec

from serving.contracts import Encoding
from serving.errors import BrokenChannel, SocketFolderUnusable

MAX_FRAME = 64 * 2**20
"""Bytes. More than any body may have once decoded; a length beyond it is garbage, not a large request."""

_HEADER = Struct("<IIQ")
_HELLO = Struct("<III")
_QUESTION = Struct("<dIHBB")
_OUTCOME = Struct("<ffIIHB")
# The same with the frame's header before them, for one call where each request passes.
_ASKING = Struct(_HEADER.format + _QUESTION.format.removeprefix("<"))
_ANSWERING = Struct(_HEADER.format + _OUTCOME.format.removeprefix("<"))
# The kernel's limit is 107 bytes on Linux and 103 on macOS.
_LONGEST_ADDRESS = 103


class Kind(IntEnum):
    """What a frame is for. `id` in its header pairs an answer with its question, and is 0 where nothing is paired."""

    PING = 1  # to the worker: answer when your loop comes round
    PONG = 2  # from the worker, with the ping's id
    HELLO = 3  # from the worker, first of all: who it is
    GOAWAY = 4  # from the worker: I am about to end, move to my successor
    HOLDS = 5  # from the worker, after HELLO and at each change: the versions it can answer for (JSON, see Held)
    PREDICT = 6  # to the worker: a Question and its rows
    ANSWER = 7  # from the worker, with the question's id: an Outcome and its predictions
    FAILURE = 8  # from the worker, with the question's id: why there is no answer (JSON, see Failure)
    CONTROL = 9  # to the worker: load, unload or configure (JSON)
    REPORT = 10  # from the worker, with the control's id: what came of it (JSON)
    TABLE = 11  # from the agent: everything an HTTP process needs to know to route (JSON)
    APPLIED = 12  # to the agent: the table of this generation counts from now on (JSON)
    SEEK = 13  # to the agent: clients' request ids that an HTTP process does not know (serving/stored_answer.py)
    FOUND = 14  # from the agent, with the SEEK's id: what the database knows of them
    BEGUN = 15  # from the worker, with the question's id: one that must be alone is being computed from now on


class Frame(msgspec.Struct, frozen=True, gc=False):
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
            frames.append(Frame(_KINDS.get(kind) or _unknown(kind), pair, bytes(data[at + _HEADER.size : at + length])))
            at += length
        return frames, at

    def _check(self, length: int) -> None:
        if not _HEADER.size <= length <= self._max_frame:
            raise BrokenChannel(f"a length of {length} bytes, where {_HEADER.size} to {self._max_frame} are possible")


# Calling an enum costs ten times as much as looking its member up.
_KINDS = {int(each): each for each in Kind}
_ENCODINGS = {int(each): each for each in Encoding}
_PREDICT, _ANSWER = int(Kind.PREDICT), int(Kind.ANSWER)


def _unknown(kind: int) -> NoReturn:
    raise BrokenChannel(f"kind {kind} is unknown")


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


class Question(msgspec.Struct, frozen=True, gc=False):
    """What comes before the rows of a PREDICT frame."""

    key: bytes  # what may share a batch: see version_key
    rows: int
    encoding: Encoding
    deadline: float  # monotonic clock, seconds; it is the same clock in every process of a machine
    solo: bool  # never in a batch with others: it was there when a worker died

    def pack(self, id: int, body: bytes) -> bytes:
        """The whole frame."""
        key = self.key
        length = _ASKING.size + len(key) + len(body)
        asking = _ASKING.pack(length, _PREDICT, id, self.deadline, self.rows, len(key), self.encoding, self.solo)
        return asking + key + body

    @classmethod
    def unpack(cls, payload: bytes) -> tuple["Question", bytes]:
        """The question, and the bytes of its rows. Raises BrokenChannel."""
        try:
            deadline, rows, length, encoding, solo = _QUESTION.unpack_from(payload)
            start = _QUESTION.size + length
            return cls(payload[_QUESTION.size : start], rows, _ENCODINGS[encoding], deadline, solo != 0), payload[
                start:
            ]
        except (struct.error, LookupError) as problem:
            raise BrokenChannel(f"a PREDICT that cannot be read ({problem})") from None


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What comes before the predictions of an ANSWER frame."""

    queue: float  # seconds it waited in the worker
    compute: float  # seconds the model took for the whole batch
    batch_rows: int  # rows in that batch
    rows: int
    width: int  # numbers per row, with FLOATS
    encoding: Encoding

    def pack(self, id: int, body: bytes) -> bytes:
        """The whole frame."""
        return _ANSWERING.pack(
            _ANSWERING.size + len(body), _ANSWER, id,
            self.queue, self.compute, self.batch_rows, self.rows, self.width, self.encoding,
        ) + body  # fmt: skip

    @classmethod
    def unpack(cls, payload: bytes) -> tuple["Outcome", bytes]:
        """The outcome, and the bytes of its predictions. Raises BrokenChannel."""
        try:
            queue, compute, batch_rows, rows, width, encoding = _OUTCOME.unpack_from(payload)
            return cls(queue, compute, batch_rows, rows, width, _ENCODINGS[encoding]), payload[_OUTCOME.size :]
        except (struct.error, LookupError) as problem:
            raise BrokenChannel(f"an ANSWER that cannot be read ({problem})") from None


def listen_at(address: str) -> socket.socket:
    """A socket that listens there, not blocking; the address is taken from a predecessor without a gap. Raises OSError.

    It is bound to a name of our own and moved over the final one. Such names of processes that were killed in between
    are removed.
    """
    place = Path(address)
    for left in place.parent.glob(f"{place.name}.*"):
        if not _is_alive(left.suffix[1:]):
            left.unlink(missing_ok=True)
    own_name = place.with_name(f"{place.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(own_name))
        listener.listen(64)
        listener.setblocking(False)
        own_name.rename(place)
    except OSError:
        listener.close()
        raise
    return listener


def _is_alive(pid: str) -> bool:
    """Whether a process of this number is there; that of ours does not count, it is another life's."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def version_key(model_id: str, version: str, variant: bytes = b"") -> bytes:
    """Requests with equal keys may share a batch. `variant`: what else makes the model answer differently."""
    return b"\0".join((model_id.encode(), version.encode(), variant))


def split_key(key: bytes) -> tuple[str, str, bytes]:
    """Model, version and variant of a key."""
    model_id, version, variant = key.split(b"\0", 2)
    return model_id.decode(), version.decode(), variant


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

    @property
    def agent_address(self) -> str:
        """Where the agent listens."""
        return str(self.path / f"worker-{self._port}-agent")

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
