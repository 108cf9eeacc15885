"""The versions that a worker holds: loaded and dropped in a thread beside the predictions, by order of the agent."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import orjson

from serving.channel import version_key
from serving.contracts import Held
from serving.errors import SwitchyardError
from serving.loader import LoadedModel, ModelLoader
from serving.logs import logger

_DEFAULT_BATCH = 64
_DEFAULT_TIMEOUT = 30.0

Report = dict[str, Any]
"""What came of an order: `{"ok": true, "held": {...} or null}` or `{"ok": false, "reason": text}`."""
Reply = Callable[[Report], None]

log = logger(__name__)


@dataclass(frozen=True)
class VersionOrder:
    """A version to be loaded, and how."""

    model_id: str
    version: str
    digest: str
    batch_size: int  # rows per call of the model
    timeout: float  # seconds that a request may take
    warmup_requests: int
    compiled: bool

    @classmethod
    def read(cls, said: dict[str, Any]) -> "VersionOrder":
        """From a CONTROL frame or the file of versions. Raises KeyError, TypeError or ValueError."""
        return cls(
            model_id=str(said["model_id"]),
            version=str(said["version"]),
            digest=str(said["digest"]),
            batch_size=int(said["batch_size"]),
            timeout=float(said["timeout"]),
            warmup_requests=int(said["warmup_requests"]),
            compiled=bool(said.get("compiled", True)),
        )

    @property
    def key(self) -> bytes:
        """See version_key."""
        return version_key(self.model_id, self.version)


@dataclass(frozen=True)
class _Finished:
    """What the thread has done, for the worker's loop to make it count."""

    key: bytes
    model: LoadedModel | None  # None: it is to be dropped
    reply: Reply


class Holdings:
    """Which versions answer here. All but the loading itself happens in the worker's loop, between two batches."""

    def __init__(self, loader: ModelLoader, wake: Callable[[], None]) -> None:
        """`wake` makes the worker's loop call `settle`; it is called from the thread."""
        self._loader = loader
        self._wake = wake
        self._models: dict[bytes, LoadedModel] = {}
        self._configured: dict[str, tuple[int, float]] = {}
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._finished: deque[_Finished | Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None

    def find(self, version: bytes) -> LoadedModel | None:
        """The model of this version (see version_key)."""
        return self._models.get(version)

    def held(self) -> list[Held]:
        """All that is held."""
        return [each.held for each in self._models.values()]

    def batch_size(self, model_id: str) -> int:
        """Rows that one call of the model takes at most."""
        return self._configured.get(model_id, (_DEFAULT_BATCH, _DEFAULT_TIMEOUT))[0]

    def timeout(self, model_id: str) -> float:
        """Seconds that a request of the model may take."""
        return self._configured.get(model_id, (_DEFAULT_BATCH, _DEFAULT_TIMEOUT))[1]

    def load_listed(self, file: Path, may_go_on: Callable[[], bool]) -> None:
        """Load what the file lists, at once: for the start of the worker, while nobody waits for it yet.

        What cannot be loaded is left out: whoever asks for it is told why then.
        """
        for order in _read_list(file):
            if not may_go_on():
                return
            self._configured[order.model_id] = order.batch_size, order.timeout
            model = self._try_to_load(order)
            if isinstance(model, LoadedModel):
                self._models[order.key] = model

    def order(self, payload: bytes, reply: Reply) -> None:
        """Do what a CONTROL frame says; `reply` is called, in the worker's loop, when it is done."""
        try:
            said = orjson.loads(payload)
            act = {"load": self._order_load, "unload": self._order_unload, "configure": self._configure}[said["op"]]
            act(said, reply)
        except (ValueError, TypeError, KeyError) as problem:
            reply(_refused(f"the order cannot be understood ({type(problem).__name__}: {problem})"))

    def settle(self, announce: Callable[[], None]) -> None:
        """Make count what the thread has finished. `announce` is called if other versions are held then.

        That comes before the replies: who is told that a version is loaded may at once have it asked for.
        """
        if not self._finished:
            return
        replies = []
        changed = False
        while self._finished:
            done = self._finished.popleft()
            if isinstance(done, _Finished):
                replies.append(self._exchange(done))
                changed = True
            else:
                replies.append(done)
        if changed:
            announce()
        for reply in replies:
            reply()

    def _order_load(self, said: dict[str, Any], reply: Reply) -> None:
        order = VersionOrder.read(said)
        self._configure_model(order.model_id, order.batch_size, order.timeout)
        self._in_thread(lambda: self._load(order, reply))

    def _order_unload(self, said: dict[str, Any], reply: Reply) -> None:
        key = version_key(str(said["model_id"]), str(said["version"]))
        # By way of the thread, so that it does not overtake a load of the same version.
        self._in_thread(lambda: self._hand_over(_Finished(key, None, reply)))

    def _configure(self, said: dict[str, Any], reply: Reply) -> None:
        self._configure_model(str(said["model_id"]), int(said["batch_size"]), float(said["timeout"]))
        reply({"ok": True, "held": None})

    def _configure_model(self, model_id: str, batch_size: int, timeout: float) -> None:
        self._configured[model_id] = batch_size, timeout
        for each in self._models.values():
            if each.held.model_id == model_id:
                each.batch_size = batch_size

    def _exchange(self, done: _Finished) -> Callable[[], None]:
        before = self._models.pop(done.key, None)
        if done.model is not None:
            done.model.batch_size = self.batch_size(done.model.held.model_id)
            self._models[done.key] = done.model
        if before is not None:
            self._in_thread(before.close)
        return lambda: done.reply({"ok": True, "held": done.model.held if done.model else None})

    def _in_thread(self, task: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
            self._thread.start()
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    def _load(self, order: VersionOrder, reply: Reply) -> None:
        model = self._try_to_load(order)
        if isinstance(model, LoadedModel):
            self._hand_over(_Finished(order.key, model, reply))
        else:
            self._hand_over(lambda: reply(_refused(model)))

    def _try_to_load(self, order: VersionOrder) -> LoadedModel | str:
        """The model, or why it cannot be loaded."""
        about = {"model_id": order.model_id, "version": order.version, "digest": order.digest[:12]}
        try:
            model = self._loader.load(
                order.model_id, order.version, order.digest,
                batch_size=order.batch_size, warmup_requests=order.warmup_requests, compiled=order.compiled,
            )  # fmt: skip
        except SwitchyardError as problem:
            # Not its text, which may quote a value of the model's example; whoever ordered it gets that.
            log.error("version cannot be loaded", problem=type(problem).__name__, **about)  # noqa: TRY400
            return problem.detail
        except BaseException as problem:
            log.exception("loading failed unexpectedly", **about)
            return f"loading it failed unexpectedly ({type(problem).__name__}); the worker's log says more"
        log.info("version loaded", engine=model.held.engine, seconds=round(model.held.load_seconds, 3), **about)
        return model

    def _hand_over(self, done: _Finished | Callable[[], None]) -> None:
        self._finished.append(done)
        self._wake()


def _refused(reason: str) -> Report:
    return {"ok": False, "reason": reason}


def _read_list(file: Path) -> list[VersionOrder]:
    """What a worker that starts should load; nothing where the file is missing or cannot be read."""
    try:
        return [VersionOrder.read(each) for each in orjson.loads(file.read_bytes())["versions"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as problem:
        log.error("list of versions cannot be read, starting without", file=str(file), problem=type(problem).__name__)  # noqa: TRY400
        return []
