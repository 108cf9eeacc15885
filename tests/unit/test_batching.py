"""Which requests share a call of the model, and which of them is to blame when it fails."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching import Answered, Batch, BatchQueue, Fault, OutOfTimeError, Waiting, answer_all
from serving.channel import Question, version_key
from serving.contracts import Encoding

LATE = 1e9
KEYS = [version_key("flights", "1"), version_key("flights", "2"), version_key("flights", "1", b'{"params":{}}')]

QUESTIONS = st.builds(
    Question,
    key=st.sampled_from(KEYS),
    rows=st.integers(1, 12),
    encoding=st.sampled_from(Encoding),
    deadline=st.sampled_from([LATE, LATE, LATE, 5.0]),
    solo=st.sampled_from([False, False, False, True]),
)


def waiting(question: Question, id: int, sender: str = "api") -> Waiting[str]:
    return Waiting(sender, id, question, b"", arrived=float(id))


def question(key: bytes = KEYS[0], rows: int = 1, **more: Any) -> Question:
    return Question(**{"key": key, "rows": rows, "encoding": Encoding.FLOATS, "deadline": LATE, "solo": False, **more})


def queue_of(*questions: Question, limit: int = 8) -> BatchQueue[str]:
    queue: BatchQueue[str] = BatchQueue(lambda key: limit)
    for place, each in enumerate(questions):
        queue.add(waiting(each, place))
    return queue


def batches(queue: BatchQueue[str], now: float = 0.0) -> list[Batch[str]]:
    found = []
    while queue:
        batch = queue.next_batch(now)
        assert batch is not None
        found.append(batch)
    assert queue.next_batch(now) is None
    return found


@given(st.lists(QUESTIONS, max_size=60), st.integers(1, 16), st.sampled_from([0.0, 6.0]))
def test_everybody_is_in_exactly_one_batch_of_its_kind(questions: list[Question], limit: int, now: float) -> None:
    """A client would wait for ever, get two answers, or another version's."""
    found = batches(queue_of(*questions, limit=limit), now)
    seen = Counter(each.id for batch in found for each in [*batch.requests, *batch.expired])
    assert seen == Counter(range(len(questions)))
    for batch in found:
        members = [each.question for each in batch.requests]
        assert {(each.key, each.encoding) for each in members} <= {(batch.key, batch.encoding)}
        assert sum(each.rows for each in members) <= limit or len(members) == 1
        assert len(members) == 1 or not any(each.solo for each in members)
        assert [each.id for each in batch.requests] == sorted(each.id for each in batch.requests)
        assert all(each.question.deadline <= now for each in batch.expired)
        assert all(each.deadline > now for each in members)


@given(st.lists(QUESTIONS.filter(lambda each: not each.solo and each.deadline == LATE), min_size=1, max_size=60))
def test_who_waits_longest_is_next(questions: list[Question]) -> None:
    """A busy version would starve a quiet one."""
    queue = queue_of(*questions, limit=16)
    left = set(range(len(questions)))
    while queue:
        batch = queue.next_batch(0.0)
        assert batch is not None
        ids = {each.id for each in batch.requests}
        assert min(left) in ids
        left -= ids


def test_all_that_fit_are_taken() -> None:
    """Batches would stay small, and throughput with them."""
    found = batches(queue_of(*[question(rows=3)] * 5, question(KEYS[1]), limit=9))
    assert [[each.id for each in batch.requests] for batch in found] == [[0, 1, 2], [3, 4], [5]]


def test_a_request_of_more_rows_than_a_batch_comes_alone() -> None:
    """It would never be answered, or make others wait for its many calls."""
    found = batches(queue_of(question(), question(rows=100), question(), limit=8))
    assert [[each.id for each in batch.requests] for batch in found] == [[0], [1], [2]]


def test_who_left_is_forgotten() -> None:
    """A worker would compute for an HTTP process that has died, while others wait."""
    queue: BatchQueue[str] = BatchQueue(lambda key: 8)
    for place, sender in enumerate(["one", "other", "one", "one"]):
        queue.add(waiting(question(KEYS[place % 2]), place, sender))
    queue.take_out("one")
    assert [[each.id for each in batch.requests] for batch in batches(queue)] == [[1]]
    queue.take_out("nobody")
    assert not queue


class Model:
    """Squares its rows; raises when poisoned ones are among them, or two that do not go together."""

    def __init__(self, poisoned: set[int], together: set[int] | None = None) -> None:
        self.poisoned = poisoned
        self.together = together
        self.calls = 0

    def __call__(self, start: int, stop: int) -> list[int]:
        self.calls += 1
        rows = set(range(start, stop))
        if rows & self.poisoned:
            raise ArithmeticError(min(rows & self.poisoned))
        if self.together and self.together <= rows:
            raise SystemExit("not these together")
        return [row * row for row in range(start, stop)]


def always(_request: int) -> bool:
    return True


def spans(sizes: list[int]) -> list[range]:
    found, start = [], 0
    for size in sizes:
        found.append(range(start, start + size))
        start += size
    return found


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=20)


@given(SIZES, st.sets(st.integers(0, 100), max_size=6))
def test_only_who_sent_a_poisoned_row_fails_and_is_told_which(sizes: list[int], poisoned: set[int]) -> None:
    """One bad row would fail the requests of strangers, or its sender would not know which one it is."""
    model = Model(poisoned)
    outcomes = answer_all(sizes, model, always)
    assert len(outcomes) == len(sizes)
    for rows, outcome in zip(spans(sizes), outcomes, strict=True):
        bad = sorted(poisoned & set(rows))
        if bad:
            assert isinstance(outcome, Fault)
            assert outcome.row == bad[0] - rows.start
            assert isinstance(outcome.problem, ArithmeticError)
            assert outcome.problem.args == (bad[0],)
        else:
            assert isinstance(outcome, Answered)
            assert outcome.answers[outcome.start : outcome.start + len(rows)] == [row * row for row in rows]
    if not poisoned & set(range(sum(sizes))):
        assert model.calls == 1


def test_one_poisoned_row_of_many_costs_few_calls() -> None:
    """One bad request in a batch would hold up everybody for as many calls as there are requests."""
    model = Model({40})
    answer_all([1] * 64, model, always)
    assert model.calls <= 1 + 2 * 6
    model = Model({700})
    (fault,) = answer_all([1000], model, always)
    assert fault == Fault(700, fault.problem)  # type: ignore[union-attr]
    assert model.calls <= 1 + 2 * 10


def test_rows_that_fail_only_together_are_nobodys_alone() -> None:
    """The wrong row would be named."""
    (fault,) = answer_all([8], Model(set(), together={1, 6}), always)
    assert isinstance(fault, Fault)
    assert fault.row is None
    assert isinstance(fault.problem, SystemExit)


def test_requests_that_fail_only_together_are_answered_apart() -> None:
    """Two innocent requests would fail because they met."""
    outcomes = answer_all([1, 1, 1, 1], Model(set(), together={0, 3}), always)
    assert all(isinstance(each, Answered) for each in outcomes)


@pytest.mark.parametrize("patience", [1, 2, 5, 20])
def test_a_broken_model_is_not_asked_beyond_the_deadlines(patience: int) -> None:
    """A model that fails slowly would keep its worker busy for minutes with requests that nobody waits for."""
    model = Model(set(range(200)))
    outcomes = answer_all([3] * 64, model, lambda _: model.calls < patience)
    assert model.calls <= patience + 1  # one under way is not interrupted
    assert all(isinstance(each, Fault) for each in outcomes)
    late = [each for each in outcomes if isinstance(each, Fault) and isinstance(each.problem, OutOfTimeError)]
    assert len(late) >= 64 - patience


def test_who_is_out_of_time_does_not_cost_the_others() -> None:
    """One request with a short deadline would take its batch along."""
    outcomes = answer_all([1, 1, 1], Model({0}), lambda each: each != 1)
    assert isinstance(outcomes[0], Fault)
    assert outcomes[0].row == 0
    assert isinstance(outcomes[2], Answered)
