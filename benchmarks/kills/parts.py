"""Item 1: every part is killed under light load. It comes back, nothing of it is left, and nobody else notices."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import psutil

from benchmarks.kills.load import Answer, Load
from benchmarks.kills.verdict import Verdict, spread
from benchmarks.stack import PARTS, Piece, Stack, fresh_stack, is_alive
from benchmarks.waiting import wait_for

_BACK_GUARD = 180.0
# Good answers from each address between a part's return and the next kill, so that each kill is seen by itself.
_CALM = 10
_SHOWN = 3


@dataclass(frozen=True)
class Outage:
    """A part from its kill until it was ready again, on the monotonic clock."""

    part: str
    killed: float
    back: float

    @property
    def seconds(self) -> float:
        return self.back - self.killed

    def explains(self, answer: Answer) -> bool:
        """Whether the part could not give a better answer."""
        return answer.ended >= self.killed and answer.began <= self.back


def kill_parts(verdict: Verdict, rng: random.Random, rounds: int) -> None:
    """Kill each part once a round, in random order."""
    with fresh_stack() as stack:
        stack.start()
        stack.wait_ready()
        urls = {
            "data-plane": f"{stack.data_plane_url}/health/ready",
            "control-plane": f"{stack.control_plane_url}/ml/models",
        }
        outages = []
        with Load(urls) as load:
            for _ in range(rounds):
                for name in rng.sample(PARTS, len(PARTS)):
                    began = time.monotonic()
                    wait_for(partial(_is_calm, load, began), "good answers from everybody", _BACK_GUARD)
                    outages.append(_kill_one(verdict, stack, name))
            began = time.monotonic()
            wait_for(partial(_is_calm, load, began), "good answers from everybody", _BACK_GUARD)
        _judge(verdict, load, outages)
        verdict.figure("SIGTERM to everything gone afterwards", f"{stack.stop():.1f} s")


def _is_calm(load: Load, since: float) -> bool:
    return load.good_since(since) >= _CALM


def _kill_one(verdict: Verdict, stack: Stack, name: str) -> Outage:
    before = {each.name: each.restarts for each in stack.state().parts}
    old = [each for each in stack.processes() if each.part == name]
    killed = time.monotonic()
    psutil.Process(stack.part(name).pid).kill()

    def is_back() -> bool:
        now = stack.part(name)
        return now.restarts > before[name] and now.state == "ready"

    wait_for(is_back, f"{name} to be back", _BACK_GUARD)
    back = time.monotonic()
    _look_round(verdict, stack, name, old, before)
    return Outage(name, killed, back)


def _look_round(
    verdict: Verdict, stack: Stack, name: str, old: Sequence[Piece], restarts_before: dict[str, int]
) -> None:
    left = [each.process.pid for each in old if is_alive(each.process)]
    verdict.require(not left, f"{len(left)} processes of the killed {name} were left")
    for each in stack.state().parts:
        expected = restarts_before[each.name] + (each.name == name)
        verdict.require(
            each.restarts == expected,
            f"{each.name} was started again {each.restarts - restarts_before[each.name]} times when {name} was killed "
            f"(last end: {each.last_end})",
        )


def _judge(verdict: Verdict, load: Load, outages: Sequence[Outage]) -> None:
    verdict.figure("kills", len(outages))
    for part in PARTS:
        verdict.figure(f"{part}: killed to ready", spread([each.seconds for each in outages if each.part == part]))
    for part, answers in load.answers.items():
        own = [each for each in outages if each.part == part]
        failed = [each for each in answers if each.problem]
        unexplained = [each for each in failed if not any(outage.explains(each) for outage in own)]
        verdict.figure(
            f"{part}: requests, failed while it was dead itself, failed because of others",
            f"{len(answers)}, {len(failed) - len(unexplained)}, {len(unexplained)}",
        )
        verdict.figure(f"{part}: answered in", spread([each.seconds for each in answers if not each.problem]))
        for each in unexplained[:_SHOWN]:
            verdict.problems.append(f"{part} failed {_beside(each, outages)}: {each.problem}")


def _beside(answer: Answer, outages: Sequence[Outage]) -> str:
    names = [each.part for each in outages if each.explains(answer)]
    return f"while {', '.join(names)} was dead" if names else "while everything was up"
