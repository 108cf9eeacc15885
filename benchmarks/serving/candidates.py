"""Who takes part: what a candidate is, and how its server is started for a measurement and ended after it."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.serving.models import BenchModel
from benchmarks.serving.outcome import Question, Target
from benchmarks.stack import free_ports

OURS = "switchyard"

_ROOT = Path(__file__).resolve().parents[2]
_END_SECONDS = 12.0


class Said(NamedTuple):
    """What an answer says: the version that it names (the first, where it names none), and its probabilities."""

    version: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Prepared:
    """What is needed to start a server for one model."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    spool: Path | None = None  # where ours keeps what waits for the database


@dataclass(frozen=True)
class Candidate:
    """One server that takes part."""

    name: str
    title: str
    prepare: Callable[[BenchModel, Path, int], Prepared]  # model, an empty folder, port -> how to start it
    ask: Callable[[BenchModel], tuple[Question, ...]]
    decode: Callable[[bytes], Said | None]  # None: it answers the same to everybody
    # Path and what its body says, where one answer does not show that everything is loaded.
    readiness: tuple[str, Callable[[bytes], bool]] | None = None
    versions: frozenset[int] = frozenset({1})  # that must have answered something
    models: tuple[str, ...] = ("logistic",)  # what it is compared on
    connections: tuple[int, ...] = (1, 32)
    is_ceiling: bool = False  # no model at all
    in_quick: bool = False  # takes part in a short run


@dataclass(frozen=True)
class Running:
    """A server that has been started."""

    candidate: Candidate
    target: Target
    process: "subprocess.Popen[bytes]"
    log: Path
    spool: Path | None

    def family(self) -> list[psutil.Process]:
        """It and every process below it; none when it has ended."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def last_words(self) -> str:
        """The end of what it has printed, in one line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-400:]


@contextmanager
def running(candidate: Candidate, model: BenchModel) -> Iterator[Running]:
    """The server, started for this model; nothing of it is left afterwards.

    Raises:
        NotInstalled: its environment cannot be set up.
    """
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (port,) = free_ports(1)
        prepared = candidate.prepare(model, folder, port)
        log = folder / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                prepared.command,
                env=_environment(prepared.environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server = Running(candidate, Target(port, candidate.ask(model)), process, log, prepared.spool)
        try:
            yield server
        finally:
            _end(server)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHYARD_")}
    # One thread for BLAS for everybody: with several, servers would be measured by how they fight over two cores.
    return ours | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)} | dict(given)


def _end(server: Running) -> None:
    family = server.family()
    server.process.terminate()
    try:
        server.process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    for each in family:
        with suppress(psutil.NoSuchProcess):  # psutil knows whether a pid has passed to somebody else
            each.kill()  # stock LitServe leaves its children behind
