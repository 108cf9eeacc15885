"""Payload chunks: what some hundred requests carried and were answered, in one row.

The body of a chunk is zlib (level 1) around a msgpack list with one list of ten per request, in the order of
StoredPayload's fields. A version may add fields at the end. ISA-L compresses it: an eighth of zlib's time, no more room.
"""

import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import msgspec
from isal import isal_zlib


class StoredPayload(msgspec.Struct, array_like=True, gc=False):
    """What a model was asked and what it said, as both travelled between the processes (serving/contracts.py)."""

    id: bytes  # of its prediction
    model_id: str
    version: str
    rows: int
    encoding: int  # of the features: serving.contracts.Encoding
    features: bytes
    variant: bytes  # JSON of columns and parameters
    answer_encoding: int
    answer_width: int  # numbers in a row of the answer, where it is numbers
    answer: bytes


class HasOrigin(Protocol):
    """A payload, as far as its chunk is concerned."""

    id: bytes
    model_id: str
    version: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[StoredPayload]).decode


def chunks_of(payloads: Sequence[HasOrigin]) -> list[dict[str, Any]]:
    """Rows of `payload_chunk` with these payloads: one per model and version."""

    def origin(payload: HasOrigin) -> tuple[str, str]:
        return payload.model_id, payload.version

    chunks = []
    for (model_id, version), group in groupby(sorted(payloads, key=origin), origin):
        members = sorted(group, key=lambda payload: payload.id)
        chunks.append(
            {
                "first_id": members[0].id,
                "last_id": members[-1].id,
                "model_id": model_id,
                "version": version,
                "n": len(members),
                "body": isal_zlib.compress(_encode(members), 1),
            }
        )
    return chunks


def open_chunk(body: bytes) -> list[StoredPayload]:
    """The payloads of a chunk, in the order of their ids.

    Raises:
        zlib.error, msgspec.MsgspecError: it is no chunk of ours.
    """
    return _decode(zlib.decompress(body))
