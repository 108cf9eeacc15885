"""A worker in a process of its own, and somebody who speaks to it over its socket as HTTP processes and the agent do."""

import multiprocessing
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.artifacts import ArtifactStore
from serving.channel import Decoder, Frame, Hello, Kind, Outcome, Question, pack, version_key
from serving.contracts import Encoding
from serving.worker import WorkerLoop

GUARD = 30.0
"""Seconds after which an answer that should come at once is given up."""

Digest = Callable[[str], str]
"""Of a model's name: the digest of its files in the store of the test."""


class RunningWorker:
    """One worker, from a fork server as in service; `end()` leaves nothing behind."""

    def __init__(
        self, folder: Path, store: ArtifactStore, *, drain_timeout: float = 5.0, load_timeout: float = 60.0
    ) -> None:
        self.address = str(folder / "w")
        self.versions_file = folder / "versions.json"
        self.loop = WorkerLoop([self.address], drain_timeout, store.root, self.versions_file, load_timeout)
        self.process: BaseProcess | None = None
        self._clients: list[Client] = []

    def start(self, life: Callable[[WorkerLoop], None] | None = None) -> "RunningWorker":
        """Start it, once what it should load first stands in the file. `life`: what the process does with its loop."""
        self.loop.next_generation(0)
        arguments = (None, "cpu", 0) if life is None else (self.loop,)
        self.process = multiprocessing.get_context("forkserver").Process(target=life or self.loop, args=arguments)
        self.process.start()
        return self

    def connect(self) -> "Client":
        """Somebody new."""
        self._clients.append(Client(self.address))
        return self._clients[-1]

    def end(self) -> None:
        """Kill it if it still runs, and hang up."""
        for each in self._clients:
            each.close()
        if self.process is not None:
            self.process.kill()
            self.process.join(GUARD)


class Reply(NamedTuple):
    """What came back to a question: an answer, or why there is none."""

    outcome: Outcome | None
    answers: Any  # array with one row per row, or list of JSON values
    failure: dict[str, Any] | None


class Client:
    """A connection to a worker, once it stands. Frames that are not waited for are kept."""

    def __init__(self, address: str) -> None:
        end = time.monotonic() + GUARD
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.connect(address)
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        self._socket.settimeout(GUARD)
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self._ids = 0
        self.hello = Hello.unpack(self.take(Kind.HELLO).payload)
        self.holds = self.take_holds()

    def take(self, kind: Kind, id: int | None = None) -> Frame:
        """The next frame of this kind and, if given, this id. Raises ConnectionError when the worker has closed."""
        while True:
            for place, frame in enumerate(self._frames):
                if frame.kind is kind and id in (None, frame.id):
                    return self._frames.pop(place)
            self._read()

    def take_holds(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the worker says it holds, by model and version."""
        self.holds = {(each["model_id"], each["version"]): each for each in orjson.loads(self.take(Kind.HOLDS).payload)}
        return self.holds

    def control(self, **order: Any) -> dict[str, Any]:
        """What came of an order."""
        return self.report(self.order(**order))

    def order(self, **order: Any) -> int:
        """Give an order; its number."""
        self._ids += 1
        self.send(pack(Kind.CONTROL, self._ids, orjson.dumps(order)))
        return self._ids

    def report(self, number: int) -> dict[str, Any]:
        """What came of the order of this number."""
        report: dict[str, Any] = orjson.loads(self.take(Kind.REPORT, number).payload)
        return report

    def load(self, model_id: str, version: str, digest: str, **more: Any) -> dict[str, Any]:
        """Have a version loaded."""
        return self.report(self.ordered(model_id, version, digest, **more))

    def ordered(self, model_id: str, version: str, digest: str, **more: Any) -> int:
        """Order a version to be loaded; the order's number."""
        how = {"batch_size": 64, "timeout": 30.0, "warmup_requests": 2, **more}
        return self.order(op="load", model_id=model_id, version=version, digest=digest, **how)

    def question(self, model_id: str, version: str, rows: Any, *, seconds: float = GUARD, solo: bool = False) -> bytes:
        """The frame of a question; its id is one more than the one before."""
        self._ids += 1
        floats = isinstance(rows, np.ndarray)
        question = Question(
            version_key(model_id, version), len(rows), Encoding.FLOATS if floats else Encoding.JSON,
            time.monotonic() + seconds, solo,
        )  # fmt: skip
        return question.pack(self._ids, rows.astype("<f8").tobytes() if floats else orjson.dumps(rows))

    def send(self, data: bytes) -> None:
        """All of it."""
        self._socket.sendall(data)

    def ask(self, model_id: str, version: str, rows: Any, **more: Any) -> Reply:
        """One question, and what comes back."""
        self.send(self.question(model_id, version, rows, **more))
        return self.replies(1)[0]

    def readable(self) -> int:
        """Bytes that have come and were not read."""
        return len(self._socket.recv(2**20, socket.MSG_PEEK))

    def replies(self, count: int) -> list[Reply]:
        """What came back to the last so many questions, in their order."""
        wanted = range(self._ids - count + 1, self._ids + 1)
        found: dict[int, Reply] = {}
        while len(found) < count:
            for frame in [each for each in self._frames if each.id in wanted and each.kind in _REPLIES]:
                assert frame.id not in found, "answered twice"
                found[frame.id] = _reply(frame)
                self._frames.remove(frame)
            if len(found) < count:
                self._read()
        return [found[id_] for id_ in wanted]

    def closed(self) -> bool:
        """Waits until the worker has closed the connection."""
        try:
            while True:
                self._read()
        except ConnectionError:
            return True

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def _read(self) -> None:
        data = self._socket.recv(2**18)
        if not data:
            raise ConnectionError("the worker has closed")
        self._frames += self._decoder.feed(data)


_REPLIES = (Kind.ANSWER, Kind.FAILURE)


def _reply(frame: Frame) -> Reply:
    if frame.kind is Kind.FAILURE:
        return Reply(None, None, orjson.loads(frame.payload))
    outcome, body = Outcome.unpack(frame.payload)
    if outcome.encoding is Encoding.JSON:
        return Reply(outcome, orjson.loads(body), None)
    return Reply(outcome, np.frombuffer(body, "<f8").reshape(outcome.rows, outcome.width), None)
