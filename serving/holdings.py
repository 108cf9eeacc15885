"""The versions that a worker holds: loaded and dropped in a thread beside the predictions, by order of the agent."""

import threading
import time
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
from serving.load_journal import LoadWatch, took_too_long
from serving.loader import LoadedModel, ModelLoader
from serving.logs import logger
from serving.version_order import VersionOrder, read_list

_DEFAULT_BATCH = 64
_DEFAULT_TIMEOUT = 30.0
START_PATIENCE = 10.0
"""Seconds that one load may keep a worker that starts from being reached; it and the rest go on beside its work then."""

Report = dict[str, Any]
"""What came of an order: `{"ok": true, "held": {...} or null}` or `{"ok": false, "reason": text}`.

`"ended": true` beside a reason: the version made this process end.
"""
Reply = Callable[[Report], None]

log = logger(__name__)


@dataclass(frozen=True)
class _Loading:
    """The load that the thread is at."""

    order: VersionOrder
    until: float  # monotonic clock, seconds
    reply: Reply


@dataclass(frozen=True)
class _Finished:
    """What the thread has done, for the worker's loop to make it count."""

    key: bytes
    model: LoadedModel | None  # None: it is to be dropped
    reply: Reply


class Holdings:
    """Which versions answer here. All but the loading itself happens in the worker's loop, between two batches."""

    def __init__(self, loader: ModelLoader, wake: Callable[[], None], watch: LoadWatch) -> None:
        """`wake` makes the worker's loop call `settle`; it is called from the thread."""
        self._loader = loader
        self._wake = wake
        self._watch = watch
        self._models: dict[bytes, LoadedModel] = {}
        self._configured: dict[str, tuple[int, float]] = {}
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._finished: deque[_Finished | Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._loading: _Loading | None = None
        self._ordered: set[bytes] = set()

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

    @property
    def deadline(self) -> float | None:
        """By when the load under way must be over, monotonic seconds; None while nothing is being loaded."""
        loading = self._loading
        return loading.until if loading is not None else None

    def load_listed(self, file: Path, may_go_on: Callable[[], bool], patience: float = START_PATIENCE) -> None:
        """Load what the file lists, in its order: for the start of the worker, while nobody waits for it yet.

        What cannot be loaded is left out: whoever asks for it is told why then. What ended the processes before us, too.
        Returns when one takes longer than `patience` seconds: it and the rest follow when the worker can be reached.
        """
        listed = read_list(file)
        left_out = self._watch.journal.begin_life({order.mark for order in listed})
        for order in listed:
            self._configured[order.model_id] = order.batch_size, order.timeout
            if order.mark in left_out:
                log.error("version left out, workers ended while they loaded it", **_about(order))
            else:
                self._in_thread(lambda order=order: self._load_at_start(order))  # type: ignore[misc]
        done = threading.Event()
        self._in_thread(done.set)
        while may_go_on() and not self._takes_longer(patience) and not done.wait(0.05):
            pass
        self.settle(lambda: None)

    def _takes_longer(self, seconds: float) -> bool:
        loading = self._loading
        return loading is not None and time.monotonic() >= loading.until - max(0.0, self._watch.timeout - seconds)

    def give_up_overdue(self) -> bool:
        """Whether the load under way has passed its deadline: whoever ordered it is told, and this process has to end."""
        loading = self._loading
        if loading is None or time.monotonic() < loading.until:
            return False
        log.error("loading takes too long, this worker ends", seconds=self._watch.timeout, **_about(loading.order))
        self._watch.journal.give_up(loading.order.mark)
        self._watch.set_until(0.0)
        loading.reply({**_refused(took_too_long(self._watch.timeout)), "ended": True})
        return True

    def close(self) -> None:
        """This process ends in good order, which is nobody's fault."""
        self._watch.journal.end_life()

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
        self._ordered.add(order.key)
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
        if done.model is not None:
            if before is not None:
                self._in_thread(before.close)
            held = done.model.held
            return lambda: done.reply({"ok": True, "held": held})
        # Answered when its memory is free: who ordered it looks at once whether that was enough.
        self._in_thread(lambda: self._close(before, done.reply))
        return lambda: None

    def _in_thread(self, task: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
            self._thread.start()
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    def _close(self, model: LoadedModel | None, reply: Reply) -> None:
        if model is not None:
            model.close()
        self._hand_over(lambda: reply({"ok": True, "held": None}))

    def _load_at_start(self, order: VersionOrder) -> None:
        if order.key in self._ordered:
            return  # meanwhile somebody who knows better has ordered it
        model = self._try_to_load(order, _nobody)
        if isinstance(model, LoadedModel):
            self._hand_over(_Finished(order.key, model, _nobody))

    def _load(self, order: VersionOrder, reply: Reply) -> None:
        model = self._try_to_load(order, reply)
        if isinstance(model, LoadedModel):
            self._hand_over(_Finished(order.key, model, reply))
        else:
            self._hand_over(lambda: reply(_refused(model)))

    def _try_to_load(self, order: VersionOrder, reply: Reply) -> LoadedModel | str:
        """The model, or why it cannot be loaded."""
        until = time.monotonic() + self._watch.timeout
        self._watch.journal.begin(order.mark, until)
        self._watch.set_until(until)
        self._loading = _Loading(order, until, reply)
        self._wake()  # the loop has a deadline to wait for now
        try:
            return self._read_model(order)
        finally:
            self._loading = None
            self._watch.set_until(0.0)
            self._watch.journal.end(order.mark)

    def _read_model(self, order: VersionOrder) -> LoadedModel | str:
        try:
            model = self._loader.load(
                order.model_id, order.version, order.digest,
                batch_size=order.batch_size, warmup_requests=order.warmup_requests, compiled=order.compiled,
            )  # fmt: skip
        except SwitchyardError as problem:
            # Not its text, which may quote a value of the model's example; whoever ordered it gets that.
            log.error("version cannot be loaded", problem=type(problem).__name__, **_about(order))  # noqa: TRY400
            return problem.detail
        except BaseException as problem:
            log.exception("loading failed unexpectedly", **_about(order))
            return f"loading it failed unexpectedly ({type(problem).__name__}); the worker's log says more"
        held = model.held
        log.info("version loaded", engine=held.engine, seconds=round(held.load_seconds, 3), **_about(order))
        return model

    def _hand_over(self, done: _Finished | Callable[[], None]) -> None:
        self._finished.append(done)
        self._wake()


def _about(order: VersionOrder) -> dict[str, str]:
    return {"model_id": order.model_id, "version": order.version, "digest": order.digest[:12]}


def _nobody(_report: Report) -> None:
    """The reply to what nobody ordered."""


def _refused(reason: str) -> Report:
    return {"ok": False, "reason": reason}
