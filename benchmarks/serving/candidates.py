"""Who takes part: how each is started, where it is asked, and how its answers read."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.house import House
from benchmarks.serving.models import BenchModel, record_body
from benchmarks.serving.outcome import Target
from benchmarks.stack import free_ports

OURS = "switchyard"

_END_SECONDS = 20.0
_PREPARED = Callable[[BenchModel, Path, int], "Prepared"]


@dataclass(frozen=True)
class Prepared:
    """What is needed to start a server for one model."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One server that takes part."""

    name: str
    title: str
    prepare: _PREPARED  # model, an empty folder, port -> how to start it
    path: str = "/predict"  # {model} is the model's name
    encode: Callable[[dict[str, Any]], bytes] = record_body
    decode: Callable[[bytes], tuple[float, ...] | None] = lambda body: _probabilities(json.loads(body))
    # Connections of the closed loop besides the usual ones.
    extra_connections: tuple[int, ...] = ()


@dataclass(frozen=True)
class Running:
    """A server that has been started."""

    candidate: Candidate
    target: Target
    process: "subprocess.Popen[bytes]"
    log: Path

    def family(self) -> list[psutil.Process]:
        """It and every process below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


@contextmanager
def running(candidate: Candidate, model: BenchModel) -> Iterator[Running]:
    """The server, started for this model; nothing of it is left afterwards."""
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
        bodies = tuple(candidate.encode(each) for each in model.records)
        target = Target(port, candidate.path.format(model=model.name), bodies)
        server = Running(candidate, target, process, log)
        try:
            yield server
        finally:
            _end(server)


def switchyard(title: str = "Switchyard", **settings: Any) -> Candidate:
    """Ours: the data plane as it is by default, with a database, validation, ids, metrics and the prediction log on."""

    def prepare(model: BenchModel, folder: Path, port: int) -> Prepared:
        house = House(folder)
        house.keep(model.saved(folder), model.name, "1")
        house.want(model.name, "1")
        house.route(model.name, {"1": 1.0})
        house.close()
        given = {**house.settings, "data_plane_port": port, "log_level": "warning", **settings}
        environment = {f"SWITCHYARD_{name.upper()}": str(value) for name, value in given.items()}
        return Prepared([sys.executable, "-m", "serving"], environment)

    return Candidate(
        name=OURS,
        title=title,
        prepare=prepare,
        path="/ml/models/{model}/predict",
        decode=lambda body: _probabilities(json.loads(body)["predictions"][0]),
        extra_connections=(128,),
    )


def peer(name: str, title: str, *, python: str = sys.executable, **fields: Any) -> Candidate:
    """One of the files in `peers/`, run by this or another virtual environment's Python."""

    def prepare(model: BenchModel, folder: Path, port: int) -> Prepared:
        return Prepared([python, "-m", f"benchmarks.serving.peers.{name}", str(port), str(model.pickled(folder))])

    return Candidate(name=name, title=title, prepare=prepare, **fields)


CANDIDATES = (
    switchyard(),
    peer("litserve_stock", "LitServe, stock"),
    peer("fastapi_sync", "FastAPI, def"),
    peer("fastapi_async", "FastAPI, async def"),
    peer("starlette_empty", "empty Starlette route (ceiling)", decode=lambda _: None),
)


def _probabilities(prediction: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(prediction["probabilities"].values())


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHYARD_")}
    root = str(Path(__file__).resolve().parents[2])
    # One thread for BLAS for everybody: with several, servers would be measured by how they fight over two cores.
    return ours | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": root} | dict(given)


def _end(server: Running) -> None:
    try:
        family = server.family()
    except psutil.NoSuchProcess:
        family = []
    server.process.terminate()
    try:
        server.process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    for each in family:
        try:
            each.kill()  # stock LitServe leaves its children behind
        except psutil.NoSuchProcess:
            continue
