"""ModelLoader: from a kept model folder to a model that answers, proven byte for byte and warm before anybody asks."""

import base64
import ctypes
import gc
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import psutil

from serving.artifacts import ArtifactStore
from serving.compiled import CompiledEngine, try_compiled
from serving.contracts import Encoding, Held
from serving.engines import ClassifierEngine, Engine, Predicted, engine_of_booster, engine_of_estimator, why_needs_names
from serving.errors import ModelNotLoadable
from serving.model_files import ModelFiles, explain
from serving.model_input import ModelInput, Raw
from serving.warm_up import Trial, repeated, trial_rows

_MB = 2**20
_SAME = 1e-12
_MADE_UP = (
    "its answer to rows made up from its signature (if those make no sense to it, log it with an input_example, which "
    "is used instead)"
)
_DUMP = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class Piece(NamedTuple):
    """The answers to one request, as an ANSWER frame carries them."""

    encoding: Encoding
    width: int  # numbers per row, with FLOATS; else 1
    body: bytes


@dataclass(frozen=True)
class Predictions:
    """What `LoadedModel.predict` answers: one piece per request, in their order."""

    pieces: list[Piece]


class LoadedModel:
    """A version that answers. Not for several threads at once."""

    def __init__(self, held: Held, engine: Engine, model_input: ModelInput, *, arrays: bool, batch_size: int) -> None:
        """`arrays`: give the model arrays of numbers instead of DataFrames. `batch_size`: rows per call, at most."""
        self.held = held
        self.batch_size = batch_size
        self._engine: Engine | None = engine
        self._takes_rows = isinstance(engine, CompiledEngine)
        self._input = model_input
        self._arrays = arrays

    def predict(self, encoding: Encoding, bodies: Sequence[bytes], sizes: Sequence[int], variant: bytes) -> Predictions:
        """Answer some requests together. Raises whatever the model raises; see `answer_rows`."""
        answers = self.answer_rows(self.read(encoding, bodies, sizes), variant)
        pieces, start = [], 0
        for size in sizes:
            pieces.append(piece(answers[start : start + size]))
            start += size
        return Predictions(pieces)

    def read(self, encoding: Encoding, bodies: Sequence[bytes], sizes: Sequence[int]) -> Raw:
        """The rows of all requests. Raises ValueError when a body does not hold as many as it says."""
        return self._input.read(encoding, bodies, sizes)

    def may_share(self, raw: Raw) -> bool:
        """Whether all these rows may share a call, whatever they hold. Asked for each batch, so it is quick."""
        return (self._arrays and isinstance(raw, np.ndarray)) or self._input.has_one_dtype

    def dtypes_of(self, raw: Raw) -> Any:
        """Equal for rows that may share a call, where not all may; see ModelInput."""
        return self._input.dtypes_of(raw)

    def answer_rows(self, raw: Raw, variant: bytes, before_each: Callable[[], None] = lambda: None) -> Predicted:
        """One answer per row, in calls of at most `batch_size` rows; `before_each` of them is told, and may raise.

        Raises:
            ValueError: the model answered another number of rows.
            Exception: whatever the model raises.
        """
        columns, params = _read_variant(variant)
        if len(raw) <= self.batch_size:
            before_each()
            return self._call(raw, columns, params)
        parts = []
        for start in range(0, len(raw), self.batch_size):
            before_each()
            parts.append(self._call(raw[start : start + self.batch_size], columns, params))
        joined: list[Any] = []
        for part in parts:
            if isinstance(part, np.ndarray):
                return np.concatenate(parts)
            joined += part
        return joined

    def close(self) -> None:
        """Give its memory back to the system. It answers nothing any more."""
        self._engine = None
        gc.collect()
        if sys.platform == "linux":  # or the allocator would keep most of it
            ctypes.CDLL(None).malloc_trim(0)

    def _call(self, raw: Raw, columns: Sequence[str] | None, params: dict[str, Any] | None) -> Predicted:
        assert self._engine is not None, "it was closed"  # noqa: S101  # whoever closes it has taken it away before
        if self._takes_rows:
            return self._engine.predict(raw, params)
        return self._engine.predict(_prepared(self._input, raw, columns, arrays=self._arrays), params)


class ModelLoader:
    """Loads versions from the artifact store."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        # Said for every array that is given to a model fitted with names. Silenced once and not around each call,
        # which costs more than the call's own work, and changes what other threads see.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")

    def load(
        self, model_id: str, version: str, digest: str, *, batch_size: int, warmup_requests: int, compiled: bool = True
    ) -> LoadedModel:
        """The version, after every byte of it was compared and it has answered `warmup_requests` times.

        compiled: whether it may be answered by its compiled form, where that is proven to be the same and faster.

        Raises:
            ArtifactMissing: the store does not have it.
            ArtifactDamaged: a byte of it was changed.
            ModelNotLoadable: it cannot become a model here, or it does not answer; says why.
        """
        before, started = _resident(), time.perf_counter()
        folder = self._store.verify(digest).folder
        with _told("it", folder):
            files = ModelFiles.of(folder)
            model_input = ModelInput.of_signature(files.signature)
            model, engine = _make(files)
            load_seconds = time.perf_counter() - started
            trial = trial_rows(folder, model_input, model)
            arrays, reason = _choose_input(model, engine, model_input, trial)
        held = Held(
            model_id, version, digest, engine.kind, engine.classes, engine.probabilities, engine.name, reason,
            load_seconds, [], 0.0,
        )  # fmt: skip
        if compiled:
            engine, held = _compiled(held, model, engine, model_input, trial, arrays=arrays, home=folder.parent)
        loaded = LoadedModel(held, engine, model_input, arrays=arrays, batch_size=batch_size)
        with _told("its answer to its input_example" if trial.own else _MADE_UP, folder):
            seconds = [_warm(loaded, trial, rows) for rows in _sizes(warmup_requests, batch_size)]
        memory = round(max(0, _resident() - before) / _MB, 1)
        loaded.held = replace(held, warmup_seconds=seconds, memory_mb=memory)
        return loaded


def piece(answers: Predicted) -> Piece:
    """Answers to one request as they travel."""
    if isinstance(answers, np.ndarray):
        return Piece(Encoding.FLOATS, answers.shape[1], answers.astype("<f8", copy=False).tobytes())
    return Piece(Encoding.JSON, 1, orjson.dumps(answers, default=_plain, option=_DUMP))


def _plain(value: Any) -> Any:
    """What JSON has no word for, as a client would expect it. Raises TypeError for what it cannot be."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, datetime | date | Decimal):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"an answer holds a {type(value).__name__}, which is nothing that JSON can carry")


def _make(files: ModelFiles) -> tuple[Any, Engine]:
    """The model's own object, None where it is MLflow's, and what calls it."""
    if files.loader == "pyfunc" or files.has_code:
        # Only here, since it imports MLflow.
        from serving import pyfunc

        if files.loader == "pyfunc":
            return None, pyfunc.PyfuncEngine(files.folder)
        model = pyfunc.load_raw(files.folder)
    elif files.is_booster:
        import lightgbm  # only where there is such a model

        model = lightgbm.Booster(model_file=str(files.model))
    else:
        model = files.unpickle()
    return model, engine_of_booster(model) if files.is_booster else engine_of_estimator(model, files.loader)


def _compiled(
    held: Held, model: Any, engine: Engine, model_input: ModelInput, trial: Trial, *, arrays: bool, home: Path
) -> tuple[Engine, Held]:
    """Its compiled form where that answers the same, faster; and what is said of it."""

    def native(raw: Raw) -> Predicted:
        return engine.predict(_prepared(model_input, raw, None, arrays=arrays), None)

    plan, record = try_compiled(model, engine, model_input, native, trial.rows, arrays=arrays, home=home)
    about = {"model_id": held.model_id, "version": held.version}
    said = replace(held, compilation=record)
    return engine if plan is None else CompiledEngine(plan, engine, native, about=about), said


def _prepared(model_input: ModelInput, raw: Raw, columns: Sequence[str] | None, *, arrays: bool) -> Any:
    """Rows as the model itself is given them."""
    if arrays and isinstance(raw, np.ndarray):
        return model_input.to_array(raw)
    return model_input.to_frame(raw, columns)


def _choose_input(model: Any, engine: Engine, model_input: ModelInput, trial: Trial) -> tuple[bool, str]:
    """Whether to give the model arrays, which costs a fraction of a DataFrame, and why; only where it answers the same.

    Settles too whether a classifier's labels can be taken from its probabilities, which saves half of the work.
    """
    if model is None:
        return False, "no format that could be called more directly"
    arrays, why = _compare_inputs(model, engine, model_input, trial)
    if isinstance(engine, ClassifierEngine):
        chosen = model_input.to_array(trial.rows) if arrays else model_input.to_frame(trial.rows, trial.columns)
        with suppress(Exception):  # the warm-up says what is wrong with it
            engine.label_by_argmax = engine.argmax_agrees(chosen)
    return arrays, why


def _compare_inputs(model: Any, engine: Engine, model_input: ModelInput, trial: Trial) -> tuple[bool, str]:
    if model_input.tensor is not None:
        return False, "arrays, as its signature says"
    if not model_input.numeric:
        return False, f"DataFrames: {'not all columns are numbers' if model_input.columns else 'it has no signature'}"
    why = why_needs_names(model, model_input.names)
    if why is None:
        try:
            by_position = engine.predict(model_input.to_array(trial.rows), None)
            by_name = engine.predict(model_input.to_frame(trial.rows, None), None)
        except Exception as problem:  # noqa: BLE001  # models raise anything; the warm-up says what is wrong with it
            why = f"it raises {type(problem).__name__}"
        else:
            if np.allclose(by_position, by_name, rtol=_SAME, atol=_SAME, equal_nan=True):
                return True, f"arrays: answered {len(trial.rows)} rows as with DataFrames"
            why = "arrays are answered differently"
    return False, f"DataFrames: {why}"


def _sizes(requests: int, batch_size: int) -> list[int]:
    """Rows of each warm-up prediction: single ones and whole batches by turns."""
    return [batch_size if place % 2 else 1 for place in range(requests)]


def _warm(loaded: LoadedModel, trial: Trial, rows: int) -> float:
    """Seconds that one prediction took."""
    variant = orjson.dumps({"columns": trial.columns}) if trial.columns else b""
    started = time.perf_counter()
    piece(loaded.answer_rows(repeated(trial.rows, rows), variant))
    return time.perf_counter() - started


@contextmanager
def _told(what: str, folder: Path) -> Iterator[None]:
    """Whatever is raised inside becomes a reason that a person can act on."""
    try:
        yield
    except ModelNotLoadable:
        raise
    except BaseException as problem:  # what is unpickled may raise anything
        raise ModelNotLoadable(explain(what, problem, folder)) from problem


def _read_variant(variant: bytes) -> tuple[Sequence[str] | None, dict[str, Any] | None]:
    """Columns and parameters that all requests of a batch have in common."""
    if not variant:
        return None, None
    read = orjson.loads(variant)
    return read.get("columns"), read.get("params") or None


def _resident() -> int:
    """Bytes of memory of this process."""
    return int(psutil.Process().memory_info().rss)
