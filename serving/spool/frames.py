"""Frames in a segment: four bytes of magic, u32 length, u32 crc32 (little-endian), then a msgpack list of records.

A reader that finds a damaged frame goes on at the next magic whose frame is whole. The magic holds bytes that neither
UTF-8 nor msgpack has, so that texts cannot look like the beginning of a frame.
"""

import fcntl
from io import BufferedReader
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from zlib import crc32

MAGIC = b"\xc1SY\xc1"
_HEADER = Struct("<4sII")
_WINDOW = 256 << 10


class Frame(NamedTuple):
    """One whole frame: where it starts and ends in its segment, and its msgpack."""

    start: int
    end: int
    body: bytes


class Found(NamedTuple):
    """What was read of a segment from some offset on."""

    frames: list[Frame]
    end: int  # offset of what is not read yet
    torn: int  # bytes on the way there that could not be read
    final: bool  # nothing will be added to this segment any more


def framed(body: bytes) -> tuple[bytes, bytes]:
    """A body as it is written: header and body, for one `writev`."""
    return _HEADER.pack(MAGIC, len(body), crc32(body)), body


def count_records(path: Path) -> int:
    """How many records the whole frames of a segment hold; 0 where it cannot be read."""
    try:
        frames, _, _ = find_frames(path.read_bytes(), final=True)
    except OSError:
        return 0
    return sum(_length_of_list(frame.body) for frame in frames)


def read_frames(path: Path, offset: int, window: int = _WINDOW) -> Found:
    """Whole frames from `offset` on, of about `window` bytes; at least one where there is one.

    An unfinished tail is left alone while its writer lives; of a dead writer it is passed over and counted.

    Raises:
        OSError: the segment cannot be read; FileNotFoundError when it was dropped.
    """
    with path.open("rb") as file:
        # Asked before reading: nothing can have been added after a writer that was gone by then.
        final = _writer_is_gone(file)
        file.seek(offset)
        data = file.read(window)
        frames, end, torn = find_frames(data, final=final and len(data) < window, base=offset)
        if not frames and len(data) == window:  # a frame larger than that, or as much that is damaged
            data += file.read()
            frames, end, torn = find_frames(data, final=final, base=offset)
    return Found(frames, end, torn, final)


def find_frames(data: bytes, *, final: bool, base: int = 0) -> tuple[list[Frame], int, int]:
    """The whole frames in `data`, the offset behind them, and how many bytes between them were passed over.

    `data` lies at offset `base` of its segment. Unless it is `final`, more bytes may follow: what could be the beginning
    of a frame is left for the next time.
    """
    frames: list[Frame] = []
    at = torn = 0
    while at < len(data):
        frame = _frame_at(data, at)
        if frame is None:
            behind = None if not final and _may_go_on(data, at) else _next_frame(data, at + 1)
            if behind is None and not final:
                break
            torn += (len(data) if behind is None else behind) - at
            at = len(data) if behind is None else behind
            continue
        frames.append(Frame(base + at, base + frame.end, frame.body))
        at = frame.end
    return frames, base + at, torn


def _frame_at(data: bytes, at: int) -> Frame | None:
    """The frame that begins here; None where none does, or not all of it is here."""
    if len(data) - at < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack_from(data, at)
    start = at + _HEADER.size
    if magic != MAGIC or start + length > len(data):
        return None
    body = data[start : start + length]
    return Frame(at, start + length, body) if crc32(body) == checksum else None


def _may_go_on(data: bytes, at: int) -> bool:
    """Whether this is the beginning of a frame whose end is not here."""
    if len(data) - at < _HEADER.size:
        return True
    magic, length, _ = _HEADER.unpack_from(data, at)
    return bool(magic == MAGIC and at + _HEADER.size + length > len(data))


def _next_frame(data: bytes, at: int) -> int | None:
    """Where the next whole frame begins."""
    while (at := data.find(MAGIC, at)) >= 0:
        if _frame_at(data, at) is not None:
            return at
        at += 1
    return None


def _writer_is_gone(file: BufferedReader) -> bool:
    """A writer locks its segment; the kernel takes the lock away when the process ends, however it ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _length_of_list(body: bytes) -> int:
    """The length of a msgpack list, from its first bytes."""
    first = body[0] if body else 0
    if first & 0xF0 == 0x90:
        return first & 0x0F
    if first == 0xDC:
        return int.from_bytes(body[1:3], "big")
    return int.from_bytes(body[1:5], "big") if first == 0xDD else 0
