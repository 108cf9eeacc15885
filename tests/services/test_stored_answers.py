"""What the database knows of clients' request ids, and how the agent tells it."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from serving.agent import lookups
from serving.agent.database import DatabaseLink
from serving.agent.lookups import Lookups
from serving.channel import Decoder, Frame, Kind
from serving.shipper import Shipper
from serving.store import Database, answers
from serving.store.answers import find_answers
from serving.stored_answer import AnswerBytes, Sought, StoredAnswer, pack_sought, unpack_found
from tests.predictions import a_payload, a_request, record_all

GUARD = 20.0


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the agent may take longer than a request would wait."""
    monkeypatch.setattr(lookups, "_STALE", GUARD)
    monkeypatch.setattr(answers, "_CHUNK_SECONDS", GUARD)


def asked() -> Sought:
    """An id of a client, and a body."""
    return Sought(os.urandom(16), os.urandom(16))


def answered(sought: Sought, **facts: Any) -> Any:
    """A request that brought this id."""
    return a_request(client_key=sought.key, body_digest=sought.digest, **facts)


def shipped(database: Database, spool: Path, records: list[Any], payloads: list[Any]) -> None:
    """As an HTTP process answered these, and a shipper stored them."""
    record_all(spool / "api-0", records, payloads)
    Shipper(database, spool, "here:8000").drain(GUARD)


def find(database: Database, *sought: Sought) -> list[StoredAnswer]:
    """What the database says."""
    with database.reading() as session:
        return sorted(find_answers(session, sought), key=lambda each: each.key)


def test_an_id_is_found_with_all_that_its_answer_was(database: Database, tmp_path: Path) -> None:
    """A retry after a restart would be computed again."""
    with_payload, without, failed, unknown = asked(), asked(), asked(), asked()
    rows = [(1.0, None, 0.8), (None, "no", 0.25), (None, None, None)]
    first = answered(with_payload, arm="b", latency_us=1234)
    records = [first, answered(without, rows=rows), answered(failed, status=500, rows=[]), a_request()]
    payload = a_payload(id=first.id, rows=1, answer=b"its answer", answer_width=3)
    shipped(database, tmp_path, records, [payload, a_payload(), a_payload(version="4")])
    expected = [
        StoredAnswer(*with_payload, "3", "b", 1234, AnswerBytes(1, 0, 3, b"its answer"), []),
        StoredAnswer(*without, "3", None, 1500, None, rows),
    ]
    found = find(database, with_payload, without, failed, unknown)
    assert found == sorted(expected, key=lambda each: each.key)


def test_another_body_is_told_apart_beside_the_same(database: Database, tmp_path: Path) -> None:
    """A client's mistake would get it somebody else's answer, or take the right one away from whoever asks rightly."""
    sought = asked()
    shipped(database, tmp_path, [answered(sought)], [])
    other = Sought(sought.key, os.urandom(16))
    assert find(database, other) == [StoredAnswer(*sought)]
    for together in ((sought, other), (other, sought)):
        (found,) = find(database, *together)
        assert (found.digest, found.rows) == (sought.digest, [(1.0, None, 0.8)])


def test_an_answer_is_found_among_overlapping_chunks(database: Database, tmp_path: Path) -> None:
    """With several HTTP processes most answers would not be found."""
    for spool in ("a", "b", "c"):  # each fills a chunk over the same span of time
        sought = [asked() for _ in range(20)]
        records = [answered(each) for each in sought]
        payloads = [a_payload(id=each.id, answer=each.id) for each in records]
        shipped(database, tmp_path / spool, records, payloads)
        found = {each.key: each for each in find(database, *sought)}
        for record in records:
            answer = found[record.client_key].answer
            assert answer is not None
            assert answer.body == record.id


def test_the_agent_answers_each_process_what_it_asked(database: Database, database_url: str, tmp_path: Path) -> None:
    """One HTTP process would be told what another one asked, or nothing."""
    one, two, unknown = asked(), asked(), asked()
    shipped(database, tmp_path, [answered(one), answered(two)], [])
    found = asyncio.run(_seek(database_url, [[one, unknown], [two], [unknown]]))
    assert [[each.key for each in told or ()] for told in found] == [[one.key], [two.key], []]


def test_the_agent_says_when_there_is_no_database(tmp_path: Path) -> None:
    """Each request with an id would wait for it in vain."""
    assert asyncio.run(_seek(f"sqlite:///{tmp_path}/none.db", [[asked()]])) == [None]


async def _seek(database_url: str, questions: list[list[Sought]]) -> list[list[StoredAnswer] | None]:
    """What the agent answers to these, asked at once."""
    agent = Lookups(DatabaseLink(database_url, 5.0))
    agent.start()
    replies: asyncio.Queue[bytes] = asyncio.Queue()
    for number, sought in enumerate(questions):
        agent.take(Frame(Kind.SEEK, number, pack_sought(sought)), replies.put_nowait)
    try:
        async with asyncio.timeout(GUARD):
            data = b"".join([await replies.get() for _ in questions])
    finally:
        await agent.close()
    frames = sorted(Decoder().feed(data), key=lambda each: each.id)
    return [unpack_found(each.payload) for each in frames]
