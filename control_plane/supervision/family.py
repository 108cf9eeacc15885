"""Finds every process of a stack, whatever session it made for itself, and ends it politely, then firmly.

Used by the supervisor, by the guardian that outlives it, and by the next start after both were killed. A process
belongs to a stack by the marker in its environment, which every descendant inherits, or by the process group that
the supervisor made for it.
"""

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import psutil

STACK_VARIABLE = "SWITCHYARD_STACK_ID"
# Which part of the stack a process belongs to. Not a setting, hence without the settings' prefix.
PART_VARIABLE = "_SWITCHYARD_PART"
FOLDER_VARIABLE = "SWITCHYARD_DATA_FOLDER"

_POLL_SECONDS = 0.1
# What no KILL has ended by then hangs in the kernel, and waiting longer would not help.
_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Member:
    """A living process that carries a stack's marker, or is in a group that was asked for."""

    process: psutil.Process
    parent: int
    group: int
    stack_id: str
    part: str
    folder: str


def living(groups: Collection[int] = ()) -> list[Member]:
    """Every marked process of this machine and everybody in `groups`, without this process and its ancestors."""
    spared = _self_and_ancestors()
    found = (_member(pid, groups) for pid in psutil.pids() if pid not in spared)
    return [each for each in found if each]


def _self_and_ancestors() -> set[int]:
    """Started from inside a stack, this process carries a marker itself."""
    try:
        return {os.getpid(), *(each.pid for each in psutil.Process().parents())}
    except psutil.Error:
        return {os.getpid()}


def _member(pid: int, groups: Collection[int]) -> Member | None:
    try:
        group = os.getpgid(pid)
        process = psutil.Process(pid)
        environment = _environment(process)
        if group not in groups and STACK_VARIABLE not in environment:
            return None
        # A zombie has ended; only whoever started it has not looked yet.
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        marks = (environment.get(each, "") for each in (STACK_VARIABLE, PART_VARIABLE, FOLDER_VARIABLE))
        return Member(process, process.ppid(), group, *marks)
    except (psutil.Error, OSError):
        return None


def _environment(process: psutil.Process) -> dict[str, str]:
    """Another user's environment cannot be read, and another user's process is never ours."""
    try:
        return process.environ()
    except (psutil.AccessDenied, OSError):
        return {}


class Ending:
    """Ends a family step by step: TERM first, KILL to whoever is left after `grace` seconds.

    TERM goes to those whose parent is not itself in the family: a server ends its own workers in its own order, and
    only what it leaves behind is told directly.
    """

    def __init__(self, grace: float) -> None:
        self._deadline = time.monotonic() + grace
        self._told: set[psutil.Process] = set()

    def hurry(self) -> None:
        """No grace any more."""
        self._deadline = time.monotonic()

    def step(self, family: Collection[Member]) -> bool:
        """Signal whoever needs it; True when the family is empty."""
        if time.monotonic() >= self._deadline:
            for each in family:
                _signal(each.process.kill)
        else:
            self._ask(family)
        return not family

    def _ask(self, family: Collection[Member]) -> None:
        pids = {each.process.pid for each in family}
        for each in family:
            if each.parent not in pids and each.process not in self._told:
                self._told.add(each.process)
                _signal(each.process.terminate)


def end(search: Callable[[], Collection[Member]], grace: float, settle: float = 0.0) -> int:
    """End all that `search` finds and return how many that were; blocks.

    `grace`: seconds between TERM and KILL. `settle`: seconds for which nobody may turn up any more, for a process that
    was just being started when its starter was killed.
    """
    ending, seen, last_seen = Ending(grace), set(), time.monotonic()
    give_up = last_seen + grace + settle + _KILL_SECONDS
    while time.monotonic() < give_up:
        family = search()
        seen |= {each.process for each in family}
        now = time.monotonic()
        last_seen = now if family else last_seen
        if ending.step(family) and now - last_seen >= settle:
            break
        time.sleep(_POLL_SECONDS)
    return len(seen)


def _signal(send: Callable[[], None]) -> None:
    """Send, unless the process has gone in between. psutil compares start times, so a reused pid is never hit."""
    with suppress(psutil.Error):
        send()
