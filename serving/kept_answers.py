"""Answers to clients' own request ids on disk: for an HTTP process that starts again, and for those beside it.

One file of fixed size for each HTTP process, which alone writes it; all of them read all files. In a file a table of
keys comes first, then a ring of records that overwrite the oldest. A lookup is two reads for each file, whatever it
holds, and nothing has to be read when a process starts but its own table. What was torn or overwritten while it was
read does not match its checksum, and counts as not there.
"""

import contextlib
import os
import time
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from serving.logs import logger

_ENTRY = Struct("<16sQ")  # key, position
_ENTRIES = 16  # in a bucket, the oldest of which gives way; half full where answers have 500 bytes
_BUCKETS = 1 << 14
_BUCKET_BYTES = _ENTRIES * _ENTRY.size
_TABLE_BYTES = _BUCKETS * _BUCKET_BYTES
_RECORD = Struct("<QII16s16s")  # position, length, crc32 of the key, the digest and the answer, and these two
_RING_BYTES = 61 << 20
_LARGEST = 1 << 20
_FIRST_READ = 4096
_RACY_NS = 10**9
_RETRY_SECONDS = 1.0
_QUIET_SECONDS = 60.0

log = logger(__name__)


class Kept(NamedTuple):
    """An answer, and the digest of the body that it belongs to."""

    digest: bytes
    answer: bytes


class KeptAnswers:
    """The answers of all HTTP processes of this data plane, and of those before them: the last 61 MB of each.

    What `keep` wrote survives the death of the process, though perhaps no power cut. Whatever the disk refuses is
    logged, and forgotten: the log in the database knows it later.
    """

    def __init__(self, folder: Path, slot: int, ring_bytes: int = _RING_BYTES) -> None:
        """`slot`: this process's number; no other that lives has it. `ring_bytes`: the same in all of them."""
        self._folder = folder
        self._path = str(folder)
        self._name = f"api-{slot}"
        self._ring_bytes = ring_bytes
        self._largest = min(_LARGEST, ring_bytes // 4)
        self._own: int | None = None
        self._position = ring_bytes
        self._retry_at = 0.0
        self._quiet_until = 0.0
        self._files: list[int] = []
        self._seen_ns = 0
        self._open_own()

    def find(self, key: bytes) -> Kept | None:
        """What this key was answered with."""
        self._open_files()
        for file in self._files:
            with contextlib.suppress(OSError):
                found = self._find_in(file, key)
                if found is not None:
                    return found
        return None

    def keep(self, key: bytes, digest: bytes, answer: bytes) -> None:
        """Have everybody find it. One of more than a megabyte is not kept."""
        size = _RECORD.size + len(answer)
        if size > self._largest:
            return
        if self._own is None and time.monotonic() >= self._retry_at:
            self._open_own()
        if self._own is None:
            return
        try:
            self._write(self._own, key, digest, answer, size)
        except OSError as problem:
            self._complain(problem)

    def close(self) -> None:
        """Let go of all files."""
        self._close_files()
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _write(self, file: int, key: bytes, digest: bytes, answer: bytes, size: int) -> None:
        position = self._position
        left = self._ring_bytes - position % self._ring_bytes
        if left < size:  # a record never goes round the end
            position += left
        record = _RECORD.pack(position, len(answer), _checksum(key, digest, answer), key, digest) + answer
        if os.pwrite(file, record, _TABLE_BYTES + position % self._ring_bytes) != size:
            raise OSError(0, "the disk is full")
        self._position = position + size
        # Only now: an entry must never lead to what is not there yet.
        bucket = _bucket(key)
        place = _place(os.pread(file, _BUCKET_BYTES, bucket).ljust(_BUCKET_BYTES, b"\0"), key)
        os.pwrite(file, _ENTRY.pack(key, position), bucket + place)

    def _find_in(self, file: int, key: bytes) -> Kept | None:
        bucket = os.pread(file, _BUCKET_BYTES, _bucket(key))
        at = bucket.find(key)
        if at < 0 or at % _ENTRY.size or len(bucket) - at < _ENTRY.size:
            return None
        return self._read(file, key, _ENTRY.unpack_from(bucket, at)[1])

    def _read(self, file: int, key: bytes, position: int) -> Kept | None:
        at = _TABLE_BYTES + position % self._ring_bytes
        data = os.pread(file, _FIRST_READ, at)
        if len(data) < _RECORD.size:
            return None
        found, length, checksum, name, digest = _RECORD.unpack_from(data)
        if found != position or name != key or length > self._largest:
            return None  # overwritten
        end = _RECORD.size + length
        if end > len(data):
            data += os.pread(file, end - len(data), at + len(data))
        answer = data[_RECORD.size : end]
        return Kept(digest, answer) if _checksum(key, digest, answer) == checksum else None

    def _open_own(self) -> None:
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own = os.open(self._folder / self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._position = self._end(self._own)
        except OSError as problem:
            self._complain(problem)

    def _end(self, file: int) -> int:
        """The position behind the last record that is there."""
        table = os.pread(file, _TABLE_BYTES, 0)
        whole = len(table) - len(table) % _ENTRY.size
        last = max((position for _, position in _ENTRY.iter_unpack(memoryview(table)[:whole])), default=0)
        # With its room to spare: the record itself may not have survived.
        return last + self._largest if last else self._ring_bytes

    def _open_files(self) -> None:
        """Notice processes that have come since: their files are new in the folder."""
        try:
            changed = os.stat(self._path).st_mtime_ns  # noqa: PTH116  # at each request that brings an id
            if changed == self._seen_ns:
                return
            self._close_files()
            for path in sorted(self._folder.glob("api-*")):
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return
        # A file that comes within the same tick of the clock changes nothing that could be seen.
        self._seen_ns = changed if time.time_ns() - changed > _RACY_NS else 0

    def _close_files(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def _complain(self, problem: OSError) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            log.warning("answers to request ids cannot be kept, a restart may compute them again", problem=str(problem))
        self._quiet_until = now + _QUIET_SECONDS


def _bucket(key: bytes) -> int:
    """Where its bucket lies. Keys are digests, so any of their bytes are spread evenly."""
    return int.from_bytes(key[:4], "little") % _BUCKETS * _BUCKET_BYTES


def _place(bucket: bytes, key: bytes) -> int:
    """Where in the bucket its entry goes: the one it has, else an empty one (position 0), else the oldest."""
    positions = []
    for each, (name, position) in enumerate(_ENTRY.iter_unpack(bucket)):
        if name == key:
            return each * _ENTRY.size
        positions.append(position)
    return positions.index(min(positions)) * _ENTRY.size


def _checksum(key: bytes, digest: bytes, answer: bytes) -> int:
    return crc32(answer, crc32(digest, crc32(key)))
