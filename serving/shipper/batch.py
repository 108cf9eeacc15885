"""What one transaction takes of a stream: whole requests, or some rows of a large one. No I/O."""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from serving.spool import Frame
from serving.store.prediction_writes import Losses, Part, Position


class Batch(NamedTuple):
    """What one transaction takes, and where it leaves the spool."""

    origin: Position  # where the database must say that the spool is, or else somebody else has stored this
    to: Position
    parts: Sequence[Part] = ()
    past: Position = Position()  # behind the whole of the last part's request
    losses: Losses = Losses()
    refused: bytes = b""  # msgpack to be kept aside: nobody can read it, or the database will not have it
    more: bool = False  # whether there was more to read

    @property
    def rows(self) -> int:
        """How many rows it stores."""
        return sum(part.last - part.first for part in self.parts)


class Format(NamedTuple):
    """What the frames of a stream hold."""

    decode: Callable[[bytes], Sequence[Any]]  # a frame's records; raises msgspec.MsgspecError
    size: Callable[[Any], int]  # rows of a record, 1 or more


def take(origin: Position, at: Position, frames: Sequence[Frame], room: int, format: Format) -> Batch:
    """The next `room` rows of these frames, which lie at `at`; less where a frame cannot be decoded."""
    parts: list[Part] = []
    to = past = at
    torn = 0
    for frame in frames:
        gap = frame.start - to.offset
        try:
            records = format.decode(frame.body)
        except msgspec.MsgspecError:
            if parts:
                break
            passed = Position(at.segment, frame.end)
            return Batch(origin, passed, losses=Losses(torn + gap, dropped=1), refused=frame.body)
        torn += gap
        sizes = [format.size(record) for record in records]
        total = sum(sizes)
        if to.taken == 0 and total <= room:  # nearly always
            parts += map(Part, records, repeat(0), sizes)
            taken = request_end = total
        else:
            taken, request_end = _take_some(records, sizes, to.taken, room, parts)
        room -= taken - to.taken
        to, past = (_within(at.segment, frame, rows, total) for rows in (taken, request_end))
        if room <= 0:
            break
    return Batch(origin, to, parts, past, Losses(torn))


def _take_some(
    records: Sequence[Any], sizes: Sequence[int], taken: int, room: int, parts: list[Part]
) -> tuple[int, int]:
    """Add to `parts` what there is room for. Rows of the frame taken by then, and up to the end of the last request."""
    end = 0
    for record, size in zip(records, sizes, strict=True):
        start, end = end, end + size
        if end <= taken:
            continue
        last = min(end, taken + room)
        parts.append(Part(record, taken - start, last - start))
        room -= last - taken
        taken = last
        if room <= 0:
            break
    return taken, end


def _within(segment: int, frame: Frame, rows: int, total: int) -> Position:
    return Position(segment, frame.end) if rows >= total else Position(segment, frame.start, rows)
