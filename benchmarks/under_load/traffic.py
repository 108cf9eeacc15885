"""Traffic beside a trial: so many requests a second, whatever comes of them, and an account of every one."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvloop

from benchmarks.under_load.exchange import Fate, Outcome, Question, Wires, exchange
from benchmarks.waiting import wait_for

_GUARD = 60.0
_MOST_BEHIND = 1.0
"""Seconds that arrivals may be behind their time before they are left out: a stall is no reason for a flood."""


class Traffic:
    """An open loop in a thread of its own: a request is sent when it is due, also while others wait for an answer."""

    def __init__(self, port: int, ask: Callable[[int], Question], rate: float) -> None:
        """`ask` makes question number n; `rate`: questions a second, evenly spread."""
        self.outcomes: list[Outcome] = []
        self.sent = 0
        self.late = 0.0
        """Seconds that a request was sent after its time, at most: this process's own doing."""
        self._port, self._ask, self._rate = port, ask, rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    @contextmanager
    def running(self) -> Iterator["Traffic"]:
        """From here to the end of the block; after it every request has its outcome."""
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()

    def wait_for_more(self, count: int) -> None:
        """Returns when so many more requests have been answered with 200."""
        until = self.good + count
        wait_for(lambda: self.good >= until, f"{count} more good answers", _GUARD)

    @property
    def good(self) -> int:
        """Requests answered with 200 so far."""
        return sum(1 for each in list(self.outcomes) if each.status == 200)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._send_all())

    async def _send_all(self) -> None:
        wires = Wires(self._port)
        under_way: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not self._over.is_set():
            behind = time.monotonic() - due
            if behind < 0:
                await asyncio.sleep(-behind)
            self.late = max(self.late, behind)
            task = asyncio.create_task(self._ask_one(wires, self._ask(self.sent)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            self.sent += 1
            due = max(due + 1 / self._rate, time.monotonic() - _MOST_BEHIND)
        while under_way:
            await asyncio.wait(under_way)
        wires.close()

    async def _ask_one(self, wires: Wires, question: Question) -> None:
        self.outcomes.append(await exchange(wires, question))


def ask_all(port: int, questions: Sequence[Question], at_once: int) -> list[Outcome]:
    """Ask all of them, so many at any time, each as soon as one before it is answered; outcomes in their order."""
    outcomes: dict[int, Outcome] = {}

    async def work() -> None:
        wires, numbers = Wires(port), iter(range(len(questions)))

        async def client() -> None:
            for number in numbers:
                outcomes[number] = await exchange(wires, questions[number])

        await asyncio.gather(*(client() for _ in range(min(at_once, len(questions)))))
        wires.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
    return [outcomes[number] for number in range(len(questions))]


def tally(outcomes: Sequence[Outcome]) -> str:
    """How many were answered with which status, and what else became of them."""
    statuses = Counter(each.status for each in outcomes if each.fate is Fate.ANSWERED)
    fates = Counter(each.fate for each in outcomes)
    answered = [f"{count} x {status}" for status, count in sorted(statuses.items())]
    others = [f"{fates[fate]} {fate}" for fate in (Fate.REFUSED, Fate.RESET) if fates[fate]]
    wrong = sum(1 for each in outcomes if each.fault)
    return ", ".join([*answered, *others, f"hung {fates[Fate.HUNG]}", f"wrong {wrong}"])
