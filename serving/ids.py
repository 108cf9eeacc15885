"""Keys of predictions: version-7 UUIDs of our own, as 16 bytes."""

import os
import time
import weakref
from uuid import UUID, SafeUUID

_POOLED = 512
_RANDOM = 8
_set = object.__setattr__  # what UUID itself uses


class PredictionIds:
    """Each call gives a new id, greater than all before it in this process: tables like to grow at their end.

    An id holds the time in 1/4096 ms, moved on by as much where two calls fall together, and 62 random bits. These are
    fetched for some hundred ids at once; a forked process starts with none and fetches its own, or parent and child
    would give the same. Safe to call from several threads, where order is up to them.
    """

    def __init__(self) -> None:
        self._pool: list[bytes] = []
        self._stamp = 0
        _givers.add(self)

    def __call__(self) -> bytes:
        """A new id; 0.8 us."""
        try:
            random = self._pool.pop()
        except IndexError:
            random = self._fill()
        stamp = time.time_ns() * 64 // 15625  # nanoseconds * 4096 / 10^6
        if stamp <= self._stamp:  # also when the clock is set back
            stamp = self._stamp + 1
        self._stamp = stamp
        return ((stamp >> 12) << 16 | 0x7000 | stamp & 0xFFF).to_bytes(8, "big") + random

    def forget_pool(self) -> None:
        """Fetch new randomness at the next call."""
        self._pool = []

    def _fill(self) -> bytes:
        fetched = os.urandom(_POOLED * _RANDOM)
        filled = [_marked(fetched[at : at + _RANDOM]) for at in range(0, len(fetched), _RANDOM)]
        first = filled.pop()
        self._pool = filled
        return first


def to_text(id: bytes) -> str:
    """As it is shown: the usual text of a UUID."""
    digits = id.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def to_uuid(id: bytes) -> UUID:
    """As Python has it; as `UUID(bytes=id)`, whose checks take longer than all else that is done with an id."""
    uuid = UUID.__new__(UUID)
    _set(uuid, "int", int.from_bytes(id))
    _set(uuid, "is_safe", SafeUUID.unknown)
    return uuid


def first_id(time_ms: int) -> bytes:
    """The smallest id of a millisecond since 1970: windows of time are ranges of the key."""
    return time_ms.to_bytes(6, "big") + bytes(10)


def time_of(id: bytes) -> int:
    """When an id was made, in milliseconds since 1970."""
    return int.from_bytes(id[:6], "big")


def _marked(random: bytes) -> bytes:
    """With the variant of RFC 9562 in its place; the version stands before it."""
    return bytes((0x80 | random[0] & 0x3F,)) + random[1:]


_givers: "weakref.WeakSet[PredictionIds]" = weakref.WeakSet()


def _forget_pools() -> None:
    for each in list(_givers):
        each.forget_pool()


os.register_at_fork(after_in_child=_forget_pools)
