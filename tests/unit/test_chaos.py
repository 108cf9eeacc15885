"""The trials of `make chaos`: what they call wrong, and that what one run finds does not wipe out another's figures."""

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import orjson
import pytest

from benchmarks import chaos, pages
from benchmarks.kills.verdict import Verdict
from benchmarks.under_load.exchange import GRACE, Fate, Question
from benchmarks.under_load.judging import Window, judge_outcomes
from benchmarks.under_load.telltale import telltale_question, value_of
from benchmarks.under_load.traffic import ask_all

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ROWS = [(7, 8)]
DEADLINE = 0.2


@contextmanager
def server(answering: Answering) -> Iterator[int]:
    """A server in a thread that deals with each connection like this; its port."""
    ready, over, port = threading.Event(), asyncio.Event(), [0]
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        listening = await asyncio.start_server(answering, "127.0.0.1", 0)
        port[0] = listening.sockets[0].getsockname()[1]
        ready.set()
        await over.wait()
        listening.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def answering(status: int, answer: object, more: str = "") -> Answering:
    """Every request is answered like this."""

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = orjson.dumps(answer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} x\r\n{more}content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    return answer_all


def question(model: int = 1) -> Question:
    return telltale_question("m", model, ROWS, deadline=DEADLINE)


def said(value: float, version: str = "1") -> dict[str, object]:
    """An answer as the data plane gives it."""
    return {"request_id": str(uuid.uuid4()), "model_version": version, "predictions": [{"value": value}]}


def judged(port: int, windows: list[Window] | None = None) -> list[str]:
    """What the trials find wrong with one request to this server."""
    verdict = Verdict(0, "")
    judge_outcomes(verdict, "it", ask_all(port, [question()], 1), windows or [])
    return verdict.problems


def test_the_right_answer_is_no_problem() -> None:
    """The tests below would hold of trials that call everything wrong."""
    with server(answering(200, said(value_of(1, 2, 7, 8), "2"))) as port:
        assert judged(port) == []


@pytest.mark.parametrize("value", [value_of(1, 1, 7, 8), value_of(2, 2, 7, 8), value_of(1, 2, 7, 9)])
def test_the_answer_of_another_is_seen(value: float) -> None:
    """An answer of another version, another model or to another row would pass for a right one."""
    with server(answering(200, said(value, "2"))) as port:
        assert "which is not" in judged(port)[0]


def test_a_request_that_hangs_is_seen() -> None:
    """Trials would wait for ever themselves, or call a request lost that nobody missed."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with server(hang) as port:
        (outcome,) = ask_all(port, [question()], 1)
    assert outcome.fate is Fate.HUNG
    assert DEADLINE + GRACE - 0.01 <= outcome.seconds < DEADLINE + GRACE + 5  # the event loop counts milliseconds


def test_a_reset_is_excused_only_by_what_explains_it() -> None:
    """A kill would excuse whatever else went wrong in the same trial."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    ever = (0.0, float("inf"))
    with server(cut) as port:
        assert "reset" in judged(port)[0]
        assert judged(port, [Window("kill", *ever, frozenset({Fate.RESET}))]) == []
        assert judged(port, [Window("kill", *ever, frozenset({503}))]) != []
        assert judged(port, [Window("kill", 0.0, 1e-9, frozenset({Fate.RESET}))]) != []
        assert judged(port, [Window("kill", *ever, frozenset({Fate.RESET}), ports=frozenset({1}))]) != []
        assert judged(port, [Window("stop", *ever, frozenset(), later=frozenset({Fate.RESET}))]) == []


def test_a_refusal_that_does_not_say_when_to_come_back_is_seen() -> None:
    """Clients would ask again at once, and make an overload worse."""
    with server(answering(503, {"error": "NotReady"})) as port:
        assert "does not say when" in judged(port)[0]


def test_one_item_keeps_the_figures_of_the_others() -> None:
    """To look at one item again would delete what the page says of all others."""
    options = chaos._options(["--item", "swap", "--seed", "1"])
    assert options.items == [7]
    old = "### 1. Parts: passed\n\nfirst\n\n### 7. Swap: passed\n\nof yesterday\n"
    verdict = Verdict(7, "Swap", [("sent", "12")])
    merged = chaos._merged(old, [verdict], options)
    assert merged.startswith("### 1. Parts: passed\n\nfirst\n\n### 7. Swap: passed\n\nMeasured on ")
    assert "| sent | 12 |" in merged
    assert "of yesterday" not in merged


def test_what_was_not_tried_does_not_count_as_passed() -> None:
    """A machine without root would show a full disk survived that was never full."""
    verdict = Verdict(11, "Disk")
    verdict.skip("that takes root")
    assert "not tried: that takes root" in chaos._merged("", [verdict], chaos._options(["--seed", "1"]))


def test_make_chaos_hands_item_and_counts_on() -> None:
    """`make chaos FULL=1 ITEM=swap` would quietly run everything at short counts."""
    recipe = (pages.DOCS.parent / "Makefile").read_text()
    assert "--item $(ITEM)" in recipe
    assert "--full" in recipe
    assert chaos._options(["--item", "swap", "7", "--full"]).full
