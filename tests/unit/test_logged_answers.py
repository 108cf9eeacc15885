"""What an HTTP process asks the agent: all of a tick at once, and never for long."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serving import logged_answers
from serving.channel import Decoder, Frame, Kind
from serving.errors import BrokenChannel
from serving.logged_answers import LoggedAnswers
from serving.stored_answer import Sought, StoredAnswer, pack_found, unpack_sought

GUARD = 10.0
ONE, TWO = Sought(b"1" * 16, b"a" * 16), Sought(b"2" * 16, b"b" * 16)


class Agent:
    """The other end: keeps frames, and answers when it is told to."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.came = asyncio.Event()
        self.there = True

    def take(self, data: bytes) -> bool:
        if self.there:
            self.frames += Decoder().feed(data)
            self.came.set()
        return self.there

    async def asked(self) -> None:
        """Returns once a frame has come."""
        await asyncio.wait_for(self.came.wait(), GUARD)


def _run(case: Callable[[LoggedAnswers, Agent], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        agent = Agent()
        await case(LoggedAnswers(agent.take), agent)

    asyncio.run(run())


def _ask(logged: LoggedAnswers, sought: Sought) -> "asyncio.Task[StoredAnswer | None]":
    return asyncio.create_task(logged.find(sought))


def _found(number: int, *answers: StoredAnswer) -> Frame:
    return Frame(Kind.FOUND, number, pack_found(answers))


def test_requests_of_a_tick_share_a_frame_and_each_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request with an id would cost a query, or be told what somebody else was answered."""
    monkeypatch.setattr(logged_answers, "PATIENCE", GUARD)

    async def case(logged: LoggedAnswers, agent: Agent) -> None:
        tasks = [_ask(logged, each) for each in (ONE, TWO, ONE)]
        await agent.asked()
        (frame,) = agent.frames
        assert (frame.kind, unpack_sought(frame.payload)) == (Kind.SEEK, [ONE, TWO])
        answer = StoredAnswer(*ONE, "3", None, 1500, None, [(1.0, None, 0.8)])
        logged.take(_found(frame.id, answer))
        assert await asyncio.gather(*tasks) == [answer, None, answer]

    _run(case)


def test_silence_is_waited_for_once_and_then_not_at_all() -> None:
    """With the agent hung each request with an id would take longer for the whole outage."""

    async def case(logged: LoggedAnswers, agent: Agent) -> None:
        assert await asyncio.wait_for(logged.find(ONE), GUARD) is None
        assert await asyncio.wait_for(logged.find(TWO), GUARD) is None
        assert len(agent.frames) == 1
        logged.take(_found(agent.frames[0].id, StoredAnswer(*ONE)))  # too late, and no harm

    _run(case)


@pytest.mark.parametrize("how", ["no agent", "line lost", "no database", "garbage"])
def test_an_outage_is_known_at_once(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Requests would wait for an answer that cannot come."""
    monkeypatch.setattr(logged_answers, "PATIENCE", 10 * GUARD)

    async def case(logged: LoggedAnswers, agent: Agent) -> None:
        agent.there = how != "no agent"
        task = _ask(logged, ONE)
        if agent.there:
            await agent.asked()
        match how:
            case "line lost":
                logged.lost()
            case "no database":
                logged.take(Frame(Kind.FOUND, agent.frames[0].id, pack_found(None)))
            case "garbage":
                with pytest.raises(BrokenChannel):
                    logged.take(Frame(Kind.FOUND, agent.frames[0].id, b"\xff garbage"))
        assert await asyncio.wait_for(task, GUARD) is None

    _run(case)


def test_a_client_that_leaves_does_not_take_the_answer_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own retry, in the same tick, would fail with it."""
    monkeypatch.setattr(logged_answers, "PATIENCE", GUARD)

    async def case(logged: LoggedAnswers, agent: Agent) -> None:
        leaves, stays = _ask(logged, ONE), _ask(logged, ONE)
        await agent.asked()
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        logged.take(_found(agent.frames[0].id, StoredAnswer(*ONE)))
        assert await stays == StoredAnswer(*ONE)

    _run(case)
