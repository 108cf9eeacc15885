"""How much waits in the spools of a data plane, from their files alone."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from serving.spool.files import StreamFolder
from serving.spool.frames import MAGIC
from serving.spool.writer import PAYLOADS, PREDICTIONS

_ID_MARK = b"\xc4\x10"  # msgpack: 16 bytes follow
_HEAD_BYTES = 64


class SpoolState(NamedTuple):
    """What waits, and what did not find room."""

    waiting_bytes: int  # of predictions and payloads
    oldest_seconds: float  # since the oldest waiting prediction; 0 when none waits
    dropped: int  # predictions and payloads that were not kept, all in all


def streams(spool_folder: Path, name: str) -> list[StreamFolder]:
    """The streams of this name of every HTTP process that is or was, in the order of their slots."""
    return [StreamFolder(path) for path in sorted(spool_folder.glob(f"api-*/{name}"))]


def spool_state(spool_folder: Path) -> SpoolState:
    """What waits below `<replica_folder>/spool`, a few file calls per segment that is there."""
    waiting, oldest, dropped = 0, 0.0, 0
    for name in (PREDICTIONS, PAYLOADS):
        for folder in streams(spool_folder, name):
            size, head = _waiting(folder)
            waiting += size
            dropped += folder.dropped()
            if head is not None and name == PREDICTIONS:
                oldest = max(oldest, _age(*head))
    return SpoolState(waiting, oldest, dropped)


def _waiting(folder: StreamFolder) -> tuple[int, tuple[Path, int] | None]:
    """Bytes that are not in the database, and where the first of them lies."""
    segment, offset = folder.shipped()
    size = 0
    head = None
    for number in folder.segments():
        if number < segment:
            continue
        path = folder.segment(number)
        start = offset if number == segment else 0
        try:
            rest = path.stat().st_size - start
        except OSError:
            continue
        if rest > 0:
            size += rest
            head = head or (path, start)
    return size, head


def _age(path: Path, offset: int) -> float:
    """Seconds since the first record here, by the time in its id; by the file's where it cannot be read."""
    try:
        with path.open("rb") as file:
            changed = os.fstat(file.fileno()).st_mtime
            file.seek(offset)
            head = file.read(_HEAD_BYTES)
    except OSError:
        return 0.0
    mark = head.find(_ID_MARK) if head.startswith(MAGIC) else -1
    moment = int.from_bytes(head[mark + 2 : mark + 8], "big") / 1000 if mark > 0 else changed
    return max(0.0, time.time() - moment)
