"""Load by our own generator: closed loop and open loop (Poisson), in processes of its own, with an account of its lateness."""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import BinaryIO

from benchmarks.serving.generator import Log, Order
from benchmarks.serving.outcome import Load, Target, percentile

_ROOT = Path(__file__).resolve().parents[2]
_GUARD = 60.0


@dataclass(frozen=True)
class OpenLoop:
    """How many arrive in a second, on average."""

    rate: float
    seed: int = 0


class Generation:
    """Generators at work. They have begun when this is made; `load` waits for them."""

    def __init__(
        self, target: Target, connections: int, seconds: float, arrivals: OpenLoop | None = None, processes: int = 1
    ) -> None:
        """`connections` and arrivals of all `processes` together: Poisson streams add up to one."""
        self._seconds = seconds
        self._rate = arrivals.rate if arrivals else None
        self._running = []
        for number in range(processes):
            order = Order(
                target.address,
                target.requests,
                connections=-(-connections // processes),
                seconds=seconds,
                rate=arrivals.rate / processes if arrivals else None,
                seed=arrivals.seed * processes + number if arrivals else 0,
            )
            self._running.append(_start(order))

    @property
    def is_over(self) -> bool:
        """Whether all of them have ended."""
        return all(each.poll() is not None for each, _ in self._running)

    def load(self) -> Load:
        """What came of it.

        Raises:
            ChildProcessError: a generator broke off.
        """
        return summarise([self._log(*each) for each in self._running], self._seconds, self._rate)

    def _log(self, process: "subprocess.Popen[bytes]", said: BinaryIO) -> Log:
        process.communicate(timeout=self._seconds + _GUARD)
        if process.returncode:
            raise ChildProcessError(f"the load generator ended with status {process.returncode}")
        said.seek(0)
        log: Log = pickle.load(said)
        return log

    def end(self) -> None:
        """Let go of them; kill what still runs."""
        for each, said in self._running:
            if each.poll() is None:
                each.kill()
            each.communicate()
            said.close()


def run_closed(target: Target, connections: int, seconds: float) -> Load:
    """Ask on so many connections, each at once again, for so long."""
    return _run(Generation(target, connections, seconds))


def run_open(target: Target, connections: int, seconds: float, arrivals: OpenLoop, processes: int = 1) -> Load:
    """Ask at a rate, on at most so many connections, for so long; then wait for what is under way."""
    return _run(Generation(target, connections, seconds, arrivals, processes))


def _run(generation: Generation) -> Load:
    try:
        return generation.load()
    finally:
        generation.end()


def _start(order: Order) -> tuple["subprocess.Popen[bytes]", BinaryIO]:
    # Not into a pipe: nobody reads it while the load is on, and a full one would hold the generator up.
    said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.generate"], cwd=_ROOT, stdin=subprocess.PIPE, stdout=said
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(order))
    process.stdin.flush()
    return process, said


def summarise(logs: Sequence[Log], seconds: float, rate: float | None) -> Load:
    """What generators that ran side by side for `seconds` saw, as one."""
    times = sorted(each for log in logs for each in log.times)
    refused = sorted(each for log in logs for each in log.refused)
    refused_sent = sorted(each for log in logs for each in log.refused_sent)
    late = sorted(each for log in logs for each in log.late)
    return Load(
        seconds=seconds,
        answered=sum(each <= seconds for log in logs for each in log.done),
        errors=_added([log.errors for log in logs]),
        p50=percentile(times, 50),
        p95=percentile(times, 95),
        p99=percentile(times, 99),
        generator_cpu=sum(log.cpu for log in logs) / seconds,
        generator_late=percentile(late, 99) if late else None,
        offered=rate,
        held_back=sum(log.held_back for log in logs),
        refused_p99=percentile(refused, 99) if refused else None,
        refused_sent_p99=percentile(refused_sent, 99) if refused_sent else None,
        retry_after=_added([log.retry_after for log in logs]),
        answered_in_all=len(times),
        thirds=_thirds(logs, seconds) if rate else (),
    )


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = sorted({name for each in counts for name in each})
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _thirds(logs: Sequence[Log], seconds: float) -> tuple[float, ...]:
    """Median time of what was answered in each third of the measurement: a queue that grows shows here."""
    parts: tuple[list[float], ...] = ([], [], [])
    for log in logs:
        for took, done in zip(log.times, log.done, strict=True):
            if done <= seconds:
                parts[min(2, int(done / seconds * 3))].append(took)
    return tuple(median(each) if each else float("nan") for each in parts)
