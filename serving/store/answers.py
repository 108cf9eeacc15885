"""Finding what a client's request id was answered with, for whoever is asked the same again."""

import time
import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select
from sqlmodel import Session

from serving.store.payloads import open_chunk
from serving.store.prediction_tables import PayloadChunkRow, PredictionAliasRow, PredictionRow
from serving.stored_answer import AnswerBytes, Sought, StoredAnswer

_PREDICTION = PredictionRow.metadata.tables["prediction"]
_ALIAS = PredictionAliasRow.metadata.tables["prediction_alias"]
_CHUNK = PayloadChunkRow.metadata.tables["payload_chunk"]

MOST_AT_ONCE = 500
"""Ids in one call."""

# Somebody waits for this, and not for long: what would take longer is left out, and computed anew.
_MOST_ROWS = 20_000
_MOST_CHUNK_BYTES = 8 << 20
_MOST_ANSWER_BYTES = 8 << 20
_CHUNK_SECONDS = 0.025
_CHUNKS_BESIDE = 16  # chunks of one version overlap: each HTTP process of each host fills its own

_ANSWERED = 200


def find_answers(session: Session, sought: Sequence[Sought]) -> list[StoredAnswer]:
    """What the log knows of these ids; nothing of those that it does not. At most MOST_AT_ONCE of them."""
    connection = session.connection()
    digests = {each.key: each.digest for each in sought}
    columns = (_ALIAS.c.client_key, _ALIAS.c.id, _ALIAS.c.body_digest)
    aliases = connection.execute(select(*columns).where(_ALIAS.c.client_key.in_(list(digests)))).all()
    wanted = set(sought)
    same = {each.id: each for each in aliases if Sought(each.client_key, each.body_digest) in wanted}
    others = [each for each in aliases if each.id not in same and each.body_digest is not None]
    return [StoredAnswer(each.client_key, each.body_digest) for each in others] + _answers(connection, same)


def _answers(connection: Connection, aliases: dict[bytes, Any]) -> list[StoredAnswer]:
    if not aliases:
        return []
    query = select(_PREDICTION).where(_PREDICTION.c.id.in_(list(aliases)), _PREDICTION.c.status == _ANSWERED)
    rows = connection.execute(query.order_by(_PREDICTION.c.id, _PREDICTION.c.row).limit(_MOST_ROWS)).all()
    chunks = _Chunks(connection)
    found = []
    for prediction, group in groupby(rows, lambda row: row.id):
        alias, members = aliases[prediction], list(group)
        first = members[0]
        answer = chunks.answer_of(prediction, first.model_id, first.version)
        values = [] if answer else [(each.value, each.label, each.score) for each in members]
        stored = StoredAnswer(
            alias.client_key, alias.body_digest, first.version, first.arm, first.latency_us, answer, values
        )
        found.append(stored)
    return found


class _Chunks:
    """Payload chunks, each opened once, as long as there is time and room."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._until = time.monotonic() + _CHUNK_SECONDS
        self._room = _MOST_ANSWER_BYTES
        self._opened: dict[bytes, dict[bytes, AnswerBytes]] = {}

    def answer_of(self, id: bytes, model_id: str, version: str) -> AnswerBytes | None:
        """What the model answered; None where no payload is stored, or this has taken too long already."""
        # What is asked again together was mostly answered together: a chunk that is open is looked into first.
        answer = next((opened[id] for opened in self._opened.values() if id in opened), None)
        for first_id in self._beside(id, model_id, version) if answer is None else ():
            answer = answer or self._open(first_id).get(id)
        if answer is None or len(answer.body) > self._room:
            return None
        self._room -= len(answer.body)
        return answer

    def _beside(self, id: bytes, model_id: str, version: str) -> list[bytes]:
        """The chunks that may hold it, from the index: the nearest that begin before it."""
        if time.monotonic() >= self._until:
            return []
        origin = (_CHUNK.c.model_id == model_id, _CHUNK.c.version == version)
        nearest = select(_CHUNK.c.first_id, _CHUNK.c.last_id).where(_CHUNK.c.first_id <= id, *origin)
        rows = self._connection.execute(nearest.order_by(_CHUNK.c.first_id.desc()).limit(_CHUNKS_BESIDE))
        return [row.first_id for row in rows if row.last_id >= id]

    def _open(self, first_id: bytes) -> dict[bytes, AnswerBytes]:
        if first_id not in self._opened:
            small = (_CHUNK.c.first_id == first_id, func.length(_CHUNK.c.body) <= _MOST_CHUNK_BYTES)
            body = self._connection.execute(select(_CHUNK.c.body).where(*small)).scalar_one_or_none()
            self._opened[first_id] = {} if body is None else _answers_in(body)
        return self._opened[first_id]


def _answers_in(chunk: bytes) -> dict[bytes, AnswerBytes]:
    try:
        payloads = open_chunk(chunk)
    except (zlib.error, msgspec.MsgspecError):
        return {}  # whoever reads payloads for their own sake will say so
    return {each.id: AnswerBytes(each.rows, each.answer_encoding, each.answer_width, each.answer) for each in payloads}
