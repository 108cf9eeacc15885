"""Which requests share one call of a model, and which of them is to blame when that call fails. Knows no clock."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from serving.channel import Question
from serving.contracts import Encoding

Sender = TypeVar("Sender", bound=Hashable)
Answers = TypeVar("Answers")


class Waiting(Generic[Sender]):
    """A request that waits for its batch."""

    __slots__ = ("arrived", "body", "id", "question", "sender")

    def __init__(self, sender: Sender, id: int, question: Question, body: bytes, arrived: float) -> None:
        self.sender = sender
        self.id = id  # its frame's, for the answer
        self.question = question
        self.body = body
        self.arrived = arrived  # monotonic clock, seconds


@dataclass(frozen=True)
class Batch(Generic[Sender]):
    """Requests for one call, of one version and encoding, in the order of their arrival; and those that come too late."""

    key: bytes  # see version_key
    encoding: Encoding
    requests: list[Waiting[Sender]]
    expired: list[Waiting[Sender]]


class BatchQueue(Generic[Sender]):
    """Requests that wait while the model is busy with the ones before: all that have come by then are the next batch."""

    def __init__(self, limit: Callable[[bytes], int]) -> None:
        """`limit`: how many rows a batch of this key may have."""
        self._limit = limit
        # Each group by itself is in the order of arrival.
        self._groups: dict[Hashable, deque[Waiting[Sender]]] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, request: Waiting[Sender]) -> None:
        """Let a request wait."""
        question = request.question
        # One that was there when a worker died shares with nobody, so nobody is in its group.
        group = (question.key, question.encoding, request if question.solo else None)
        waiting = self._groups.get(group)
        if waiting is None:
            self._groups[group] = deque((request,))
        else:
            waiting.append(request)

    def next_batch(self, now: float) -> Batch[Sender] | None:
        """Of the group whose oldest request waits longest as many as fit; None when nobody waits.

        A request with more rows than fit comes alone. `now`: monotonic clock, seconds.
        """
        if not self._groups:
            return None
        group = min(self._groups, key=lambda each: self._groups[each][0].arrived)
        waiting = self._groups[group]
        first = waiting[0].question
        batch: Batch[Sender] = Batch(first.key, first.encoding, [], [])
        room = self._limit(first.key)
        while waiting:
            question = waiting[0].question
            if question.deadline <= now:
                batch.expired.append(waiting.popleft())
                continue
            if question.rows > room and batch.requests:
                break
            room -= question.rows
            batch.requests.append(waiting.popleft())
        if not waiting:
            del self._groups[group]
        return batch

    def take_out(self, sender: Sender) -> list[Waiting[Sender]]:
        """This sender's requests, which do not wait here any more."""
        taken: list[Waiting[Sender]] = []
        for group, waiting in list(self._groups.items()):
            taken += [each for each in waiting if each.sender == sender]
            left = deque(each for each in waiting if each.sender != sender)
            if left:
                self._groups[group] = left
            else:
                del self._groups[group]
        return sorted(taken, key=lambda each: each.arrived)


@dataclass(frozen=True)
class Answered(Generic[Answers]):
    """A request's answers: those from `start` on of a call that answered for more than it."""

    answers: Answers
    start: int


@dataclass(frozen=True)
class Fault:
    """Why a request has no answers. `row` is the first of its rows that the model cannot bear; None: it is not one row."""

    row: int | None
    problem: BaseException


class OutOfTimeError(Exception):
    """Its deadline passed before it was its turn."""


def answer_all(
    sizes: Sequence[int], run: Callable[[int, int], Answers], in_time: Callable[[int], bool]
) -> list[Answered[Answers] | Fault]:
    """Answers of all requests of a batch, in one call if that goes well; else each by itself gets its own or its fault.

    Args:
        sizes: rows of each request, at least 1.
        run: answers the rows from the first to before the second, counted through the batch; it may raise anything.
        in_time: whether it is still worth while to compute for this request. Asked again before each further call.

    Returns:
        One for each request. The fault of a request that was given up is OutOfTimeError.
    """
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    found: dict[int, Answered[Answers] | Fault] = {}
    # Parts of the batch still to be tried: from this request to before that one.
    parts = [(0, len(sizes))]
    while parts:
        first, last = parts.pop()
        if not any(in_time(each) for each in range(first, last)):
            found |= {each: Fault(None, OutOfTimeError()) for each in range(first, last)}
            continue
        answers, problem = _attempt(run, starts[first], starts[last])
        if problem is None:
            found |= {each: Answered(answers, starts[each] - starts[first]) for each in range(first, last)}
        elif last - first == 1:
            found[first] = _find_row(starts[first], sizes[first], run, partial(in_time, first), problem)
        else:
            middle = (first + last) // 2
            parts += [(middle, last), (first, middle)]
    return [found[each] for each in range(len(sizes))]


def _find_row(
    start: int, size: int, run: Callable[[int, int], Any], in_time: Callable[[], bool], problem: BaseException
) -> Fault:
    """Of rows that fail together, with this problem, the first that fails alone."""
    together = problem
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        if not in_time():
            return Fault(None, together)
        _, below = _attempt(run, start + low, start + middle)
        _, above = (None, below) if below else _attempt(run, start + middle, start + high)
        if above is None:
            return Fault(None, together)  # only together: it is not one row
        low, high, problem = (low, middle, below) if below else (middle, high, above)
    return Fault(low, problem)


def _attempt(run: Callable[[int, int], Any], start: int, stop: int) -> tuple[Any, BaseException | None]:
    try:
        return run(start, stop), None
    except BaseException as problem:  # noqa: BLE001  # models raise anything
        return None, problem
