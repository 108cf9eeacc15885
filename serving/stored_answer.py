"""What the database knows of a client's request id, as the agent tells an HTTP process. No I/O."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

_KEY_BYTES = 16
_PAIR_BYTES = 2 * _KEY_BYTES


class Sought(NamedTuple):
    """A client's id of a request and the body it came with now; both as in `client_key` of serving/prediction.py."""

    key: bytes  # 16
    digest: bytes  # 16


class AnswerBytes(msgspec.Struct, array_like=True, gc=False):
    """What the worker answered, as it travelled."""

    rows: int
    encoding: int  # serving.contracts.Encoding
    width: int  # numbers in a row, where it is numbers
    body: bytes


class StoredAnswer(msgspec.Struct, array_like=True, gc=False):
    """The request that has this id in the log. Of another body only `key` and `digest` are told."""

    key: bytes
    digest: bytes  # of the body it came with then
    version: str = ""
    arm: str | None = None
    latency_us: int = 0
    answer: AnswerBytes | None = None  # None: not in the database, or not found fast enough
    rows: list[tuple[float | None, str | None, float | None]] = []  # value, label, score; empty beside an `answer`


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[StoredAnswer]).decode


def pack_sought(sought: Iterable[Sought]) -> bytes:
    """The payload of a SEEK frame."""
    return b"".join(each.key + each.digest for each in sought)


def unpack_sought(payload: bytes) -> list[Sought]:
    """What a SEEK frame asks for. Raises ValueError when it is none."""
    if len(payload) % _PAIR_BYTES:
        raise ValueError(f"a SEEK of {len(payload)} bytes")
    starts = range(0, len(payload), _PAIR_BYTES)
    return [Sought(payload[at : at + _KEY_BYTES], payload[at + _KEY_BYTES : at + _PAIR_BYTES]) for at in starts]


def pack_found(found: Sequence[StoredAnswer] | None) -> bytes:
    """The payload of a FOUND frame; `None`: the database could not be asked."""
    return b"" if found is None else _encode(found)


def unpack_found(payload: bytes) -> list[StoredAnswer] | None:
    """What a FOUND frame says. Raises ValueError when it is none."""
    return _decode(payload) if payload else None  # msgspec's errors are ValueErrors
