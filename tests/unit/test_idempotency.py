"""One answer per request id."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serving.errors import NotReady, RequestIdReused
from serving.idempotency import RememberedAnswers


def _run(case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(case())


def test_a_repetition_gets_the_same_answer_and_another_body_none() -> None:
    """A client that retries would be counted twice, or be given somebody else's prediction."""

    async def case() -> None:
        answers = RememberedAnswers()
        assert answers.find(b"key", b"digest", "id") is None
        answers.expect(b"key", b"digest")
        waiting = answers.find(b"key", b"digest", "id")
        assert waiting is not None
        with pytest.raises(RequestIdReused):
            answers.find(b"key", b"other", "id")
        answers.settle(b"key", b"answer")
        assert await waiting == b"answer"

    _run(case)


def test_an_error_is_shared_and_forgotten() -> None:
    """A request that failed once could never be asked again."""

    async def case() -> None:
        answers = RememberedAnswers()
        answers.expect(b"key", b"digest")
        waiting = answers.find(b"key", b"digest", "id")
        assert waiting is not None
        answers.give_up(b"key", NotReady("loading"))
        with pytest.raises(NotReady):
            await waiting
        assert answers.find(b"key", b"digest", "id") is None

    _run(case)


def test_memory_is_bounded_and_what_is_under_way_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that send ids would fill the process's memory within minutes."""

    async def case() -> None:
        answers = RememberedAnswers(most_bytes=10_000)
        answers.expect(b"slow", b"digest")
        for number in range(1000):
            answers.expect(b"%d" % number, b"digest")
            answers.settle(b"%d" % number, b"x" * 500)
        answers.settle(b"slow", b"x")
        answers.expect(b"last", b"digest")
        kept = [number for number in range(1000) if answers.find(b"%d" % number, b"digest", "id")]
        assert kept == list(range(1000 - len(kept), 1000))
        assert 5 <= len(kept) <= 10
        assert answers.find(b"last", b"digest", "id") is not None

    _run(case)


def test_after_ten_minutes_it_is_a_new_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory would never be given back."""
    monkeypatch.setattr("serving.idempotency.REMEMBERED_FOR", 0.0)

    async def case() -> None:
        answers = RememberedAnswers()
        answers.expect(b"key", b"digest")
        answers.settle(b"key", b"answer")
        assert answers.find(b"key", b"digest", "id") is None

    _run(case)


def test_one_that_takes_longer_than_that_is_still_the_same_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be computed twice, and whoever waits for the first would never be told."""
    monkeypatch.setattr("serving.idempotency.REMEMBERED_FOR", 0.0)

    async def case() -> None:
        answers = RememberedAnswers()
        answers.expect(b"key", b"digest")
        waiting = answers.find(b"key", b"digest", "id")
        assert waiting is not None
        answers.settle(b"key", b"answer")
        assert await waiting == b"answer"

    _run(case)
