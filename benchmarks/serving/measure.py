"""One measurement of one server: answers compared first, then load, and what it took of the machine."""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil

from benchmarks.serving.candidates import Candidate, Running, running
from benchmarks.serving.models import BenchModel
from benchmarks.serving.outcome import Load, Target
from benchmarks.waiting import wait_for

Generator = Callable[[Target, int, float], Load]

_START_SECONDS = 90.0
_SAME_WITHIN = 1e-9
_AT_ONCE = 32
_WARM_UP_SECONDS = 1.0


class WrongAnswers(Exception):
    """A server computes something else than scikit-learn: its speed does not matter."""


@dataclass(frozen=True)
class Figures:
    """What one server did under one load."""

    load: Load
    cpu_per_request: float  # seconds of its whole process tree
    pss: int | None  # bytes of its whole process tree after the load; None where the system does not tell


def measure(
    candidate: Candidate, model: BenchModel, generator: Generator, connections: list[int], seconds: float
) -> dict[int, Figures]:
    """Start it, compare its answers, and load it with each number of connections in turn: connections -> figures.

    Raises:
        WrongAnswers: they are not scikit-learn's.
        NotInTime: it did not come up.
    """
    with running(candidate, model) as server:
        _wait_ready(server)
        compare_answers(server, model)
        generator(server.target, _AT_ONCE, _WARM_UP_SECONDS)
        return {each: _figures(server, generator, each, seconds) for each in connections}


def compare_answers(server: Running, model: BenchModel) -> None:
    """Ask every record, many at once so that batches form, and hold the answers against scikit-learn's.

    Raises:
        WrongAnswers: and for which record.
    """
    answers = asyncio.run(_ask_all(server.target))
    for record, (body, expected) in enumerate(zip(answers, model.expected, strict=True)):
        found = server.candidate.decode(body)
        if found is not None and not _is_same(found, expected):
            raise WrongAnswers(f"{server.candidate.title}, record {record}: {found}, expected {expected}")


def _is_same(found: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    return len(found) == len(expected) and all(map(_is_close, found, expected))


def _is_close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=0, abs_tol=_SAME_WITHIN)


def _wait_ready(server: Running) -> None:
    url = f"http://127.0.0.1:{server.target.port}{server.target.path}"
    # One client: making one takes longer than asking.
    with httpx.Client(headers={"content-type": "application/json"}, timeout=5) as client:

        def answers() -> bool:
            if server.process.poll() is not None:
                raise ChildProcessError(f"{server.candidate.title} has ended: {server.log.read_text()[-2000:]}")
            with suppress(httpx.TransportError):
                return client.post(url, content=server.target.bodies[0]).status_code == 200
            return False

        wait_for(answers, f"{server.candidate.title} to answer", _START_SECONDS)


async def _ask_all(target: Target) -> list[bytes]:
    gate = asyncio.Semaphore(_AT_ONCE)
    url = f"http://127.0.0.1:{target.port}{target.path}"
    async with httpx.AsyncClient(headers={"content-type": "application/json"}, timeout=30) as client:

        async def ask(body: bytes) -> bytes:
            async with gate:
                answer = await client.post(url, content=body)
                return answer.raise_for_status().content

        return list(await asyncio.gather(*map(ask, target.bodies)))


def _figures(server: Running, generator: Generator, connections: int, seconds: float) -> Figures:
    before = _cpu_seconds(server)
    load = generator(server.target, connections, seconds)
    used = _cpu_seconds(server) - before
    asked = load.answered + sum(load.errors.values())
    return Figures(load, used / asked if asked else math.nan, _pss(server))


def _cpu_seconds(server: Running) -> float:
    """Of all its processes, and of those that came and went."""
    total = 0.0
    for each in server.family():
        with suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _pss(server: Running) -> int | None:
    sizes = []
    for each in server.family():
        with suppress(psutil.Error):
            sizes.append(each.memory_full_info())
    return sum(each.pss for each in sizes) if all(hasattr(each, "pss") for each in sizes) else None
