"""What a worker is loading, on disk: so that its successor knows what ended it, and does not end by it again and again."""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from serving.logs import logger

ENOUGH = 2
"""Processes that ended while they loaded a version, after which it is not loaded at a worker's start any more."""

log = logger(__name__)


class Mark(NamedTuple):
    """A version, to the byte."""

    model_id: str
    version: str
    digest: str


def journal_file(folder: Path, worker: int) -> Path:
    """Where the worker keeps its journal, in the replica's folder."""
    return folder / f"loading-{worker}.json"


def read_left_out(file: Path) -> list[Mark]:
    """What the worker that keeps this journal leaves out when it starts, since processes ended of it."""
    _, ended, _ = _read(file)
    return [mark for mark, count in ended.items() if count >= ENOUGH]


class LoadJournal:
    """One worker's journal. Without a disk to write on nothing is noted, and nothing fails.

    It survives the end of the process, though no power cut: that is not a version's doing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ended: dict[Mark, int] = {}

    def begin_life(self, listed: Collection[Mark]) -> set[Mark]:
        """Take over from a predecessor. Which of the listed versions must not be loaded now."""
        _, ended, at = _read(self._file)
        if at is not None:
            mark, until = at
            # One that passed its deadline was killed for it: that is no chance.
            ended[mark] = ended.get(mark, 0) + (ENOUGH if time.monotonic() >= until else 1)
            log.warning("the process before ended while it was loading", model_id=mark.model_id, version=mark.version)
        self._ended = {mark: count for mark, count in ended.items() if mark in listed}
        self._write(None)
        return {mark for mark, count in self._ended.items() if count >= ENOUGH}

    def begin(self, mark: Mark, until: float) -> None:
        """It is being loaded from now on. `until`: its deadline, monotonic seconds."""
        self._write_ours((mark, until))

    def end(self, mark: Mark) -> None:
        """It is loaded, or has failed as anything may that does not end a process."""
        self._ended.pop(mark, None)
        self._write_ours(None)

    def give_up(self, mark: Mark) -> None:
        """Its deadline has passed, and this process ends by it."""
        self._ended[mark] = self._ended.get(mark, 0) + ENOUGH
        self._write_ours(None)

    def end_life(self) -> None:
        """This process ends as it should, whatever it was loading."""
        self._write_ours(None)

    def _write_ours(self, at: tuple[Mark, float] | None) -> None:
        # A predecessor may live on for a while beside its successor, whose journal it is then.
        if _read(self._file)[0] in (None, os.getpid()):
            self._write(at)

    def _write(self, at: tuple[Mark, float] | None) -> None:
        content = {
            "pid": os.getpid(),
            "at": None if at is None else {**at[0]._asdict(), "until": at[1]},
            "ended": [{**mark._asdict(), "count": count} for mark, count in self._ended.items()],
        }
        beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            beside.write_bytes(orjson.dumps(content))
            beside.replace(self._file)
        except OSError as problem:
            log.warning("cannot note what is being loaded", file=str(self._file), reason=problem.strerror)


@dataclass(frozen=True)
class LoadWatch:
    """How long a load may take, and who is told of it: nothing in this process can end one that hangs."""

    timeout: float  # seconds
    journal: LoadJournal
    set_until: Callable[[float], None]  # tell the parent by when it must be over, monotonic seconds; 0 when it is


def took_too_long(timeout: float) -> str:
    """Why a version was given up whose load passed its deadline of so many seconds."""
    return f"loading it took longer than {timeout:g} s (SWITCHYARD_LOAD_TIMEOUT)"


def _read(file: Path) -> tuple[int | None, dict[Mark, int], tuple[Mark, float] | None]:
    """Who wrote it, how many processes ended of what, and what was being loaded; nothing where it cannot be read."""
    try:
        said = orjson.loads(file.read_bytes())
        at = said["at"]
        ended = {_mark(each): int(each["count"]) for each in said["ended"]}
        return int(said["pid"]), ended, None if at is None else (_mark(at), float(at["until"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None, {}, None


def _mark(said: dict[str, Any]) -> Mark:
    return Mark(str(said["model_id"]), str(said["version"]), str(said["digest"]))
