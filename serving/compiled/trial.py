"""Whether a version is answered by its compiled form: only if every answer and every refusal is scikit-learn's."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.compiled.engine import Native
from serving.compiled.plan import Plan, compile_plan
from serving.compiled.probes import Probes
from serving.compiled.refusals import AskNative, CannotCompile
from serving.compiled.verdicts import place_of, recall, remember
from serving.contracts import Compilation, ModelKind
from serving.engines import Engine, Predicted
from serving.model_input import ModelInput, Raw

TOLERANCE = 1e-9
"""Largest difference of two probabilities, or of two values relative to those beyond 1."""
FASTER = 1.2
"""So many times as fast as the model itself, at one row or at 64, and not slower than it at the other."""
SECONDS = 1.5
"""For comparing; the timings come on top."""
_ODD_ROWS, _ODD_BATCH = 400, 8
_FEWEST_ROWS = 100
_BATCHES = (64, 1, 16, 2, 64, 1, 16, 2)
_AGAIN = (64, 1)
_SPICE = 0.1
_THRESHOLD_ROWS = 1024
_ROUNDS, _ROUND_SECONDS, _TIMES_SECONDS = 7, 0.004, 0.5


class Tried(NamedTuple):
    """What came of it; no plan: it is not used."""

    plan: Plan | None
    record: Compilation


@dataclass
class _Tally:
    """What has been compared so far."""

    kind: ModelKind
    ends: float  # monotonic seconds
    rows: int = 0
    worst: float = 0.0
    answered: list[Raw] = field(default_factory=list)  # batches that the compiled form answered

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends


def try_compiled(
    model: Any, engine: Engine, model_input: ModelInput, native: Native, trial: Raw, *, arrays: bool, home: Path
) -> Tried:
    """Compile a loaded model, and compare and time both forms. Takes about two seconds at most; never raises.

    Where that was done before, with these libraries and this code, only a few ordinary batches are compared again.

    Args:
        model: the loaded object.
        engine: what calls it.
        model_input: its signature.
        native: the model's own answers to rows.
        trial: rows that it answers, at least one.
        arrays: whether it is given arrays instead of DataFrames.
        home: where what is found is kept.
    """
    try:
        plan = compile_plan(model, engine, model_input, arrays=arrays)
    except CannotCompile as problem:
        return Tried(None, _record(str(problem)))
    except Exception as problem:  # noqa: BLE001  # of a library's private parts any may be missing
        return Tried(None, _record(f"compiling it raised {type(problem).__name__}"))
    with np.errstate(all="ignore"):
        return _remembered(plan, engine.kind, model_input, native, trial, place_of(home))


def _remembered(plan: Plan, kind: ModelKind, model_input: ModelInput, native: Native, trial: Raw, place: Path) -> Tried:
    before = recall(place)
    if before is None:
        tried = try_plan(plan, kind, model_input, native, trial)
        remember(place, tried.record)
        return tried
    tally = _Tally(kind, time.monotonic() + SECONDS)
    probes = Probes(trial, model_input, plan)
    try:
        for size in _AGAIN:
            _compare_batch(plan, native, probes.ordinary(size, spice=0.0), tally)
    except CannotCompile as problem:
        return Tried(None, _record(str(problem), tally))
    return Tried(plan, before)


def try_plan(
    plan: Plan, kind: ModelKind, model_input: ModelInput, native: Native, trial: Raw, *, seconds: float = SECONDS
) -> Tried:
    """Compare and time a plan; see `try_compiled`."""
    probes = Probes(trial, model_input, plan)
    tally = _Tally(kind, time.monotonic() + seconds)
    try:
        _compare(plan, native, probes, tally)
        if tally.rows < _FEWEST_ROWS:
            return Tried(None, _record(f"only {tally.rows} rows could be compared", tally))
        times = _times(plan, native, tally)
    except CannotCompile as problem:
        return Tried(None, _record(str(problem), tally))
    gains = [before / after for before, after in times]
    if max(gains) < FASTER or min(gains) < 1.0:
        return Tried(None, _record(f"it is {gains[0]:.1f} x as fast for a row, {gains[1]:.1f} x for 64", tally, times))
    return Tried(plan, _record(f"answered {tally.rows} rows as the model itself does", tally, times, used=True))


def _compare(plan: Plan, native: Native, probes: Probes, tally: _Tally) -> None:
    """Raises CannotCompile at the first difference."""
    for spice in (0.0, _SPICE):
        for size in _BATCHES:
            if not tally.is_over:
                _compare_batch(plan, native, probes.ordinary(size, spice=spice), tally)
    if plan.finish.thresholds is not None and len(plan.finish.thresholds):
        _compare_thresholds(plan, probes, tally)
    _compare_permuted(plan, native, probes.ordinary(64, spice=0.0), tally)
    odd = itertools.islice(probes.odd(), _ODD_ROWS)
    while not tally.is_over and (rows := list(itertools.islice(odd, _ODD_BATCH))):
        # Singly where one of them is refused, since that refuses them all.
        if not _compare_batch(plan, native, _together(rows), tally):
            for row in rows:
                _compare_batch(plan, native, row, tally)


def _together(rows: list[Raw]) -> Raw:
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows)
    return [cells for row in rows for cells in row]


def _compare_batch(plan: Plan, native: Native, raw: Raw, tally: _Tally) -> bool:
    """Whether both answered. Raises CannotCompile where they differ."""
    ours, theirs = _attempt(plan, raw), _attempt(native, raw)
    if isinstance(ours, AskNative):
        return False
    if isinstance(theirs, Exception):
        if not isinstance(ours, Exception):
            raise CannotCompile(f"it answered rows that the model refuses with {type(theirs).__name__}")
        return False
    if isinstance(ours, Exception):
        raise CannotCompile(f"it raised {type(ours).__name__} for rows that the model answers")
    _compare_answers(ours, theirs, tally)
    tally.answered.append(raw)
    return True


def _compare_thresholds(plan: Plan, probes: Probes, tally: _Tally) -> None:
    try:
        matrix = plan.matrix(probes.ordinary(64, spice=0.0))
    except AskNative:
        return
    rows = probes.at_thresholds(matrix, plan, _THRESHOLD_ROWS)
    # By small batches too: those are answered in another way, all trees at once.
    parts = [rows[:1], rows[1:3], rows[3:19], rows[19:83], rows[83:]]
    for part in parts:
        if tally.is_over:
            return
        theirs = _attempt(lambda some: plan.finish.engine.predict(some, None), part)
        ours = _attempt(plan.finish.answer, part)
        if isinstance(ours, Exception) or isinstance(theirs, Exception):
            if not isinstance(ours, AskNative) and type(ours) is not type(theirs):
                raise CannotCompile("at its thresholds it raises where the model does not, or the other way round")
            continue
        _compare_answers(ours, theirs, tally)


def _compare_permuted(plan: Plan, native: Native, raw: Raw, tally: _Tally) -> None:
    """A row's answer must not depend on where it stands in its batch."""
    order = np.random.default_rng(1).permutation(len(raw))
    permuted = raw[order] if isinstance(raw, np.ndarray) else [raw[place] for place in order]
    theirs, ours = _attempt(native, raw), _attempt(plan, permuted)
    if not isinstance(theirs, Exception) and not isinstance(ours, Exception):
        _compare_answers(ours, np.asarray(theirs)[order], tally)


def _compare_answers(ours: Predicted, theirs: Predicted, tally: _Tally) -> None:
    """Raises CannotCompile where they differ."""
    one, other = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if one.shape != other.shape:
        raise CannotCompile(f"its answers are {one.shape}, the model's {other.shape}")
    if tally.kind is ModelKind.CLASSIFIER:
        if not np.array_equal(one[:, 0], other[:, 0]):
            raise CannotCompile("its labels differ from the model's")
        one, other = one[:, 1:], other[:, 1:]
    difference = _difference(one, other)
    tally.worst = max(tally.worst, difference)
    if not difference <= TOLERANCE:
        raise CannotCompile(f"its answers differ from the model's by {difference:.1e}")
    tally.rows += len(ours)


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest; infinite where only one of two is no finite number."""
    if not one.size:
        return 0.0
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    apart = np.abs(one - other) / np.maximum(1.0, np.abs(other))
    apart = np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))
    return float(apart.max())


def _attempt(answer: Callable[[Any], Predicted], raw: Any) -> Predicted | Exception:
    try:
        return answer(raw)
    except Exception as problem:  # noqa: BLE001  # what is compared
        return problem


def _times(plan: Plan, native: Native, tally: _Tally) -> list[tuple[float, float]]:
    """Microseconds of the model and of the plan, for one row and for 64. Raises CannotCompile without rows for it."""
    found = []
    for size in (1, 64):
        raw = next((each for each in tally.answered if len(each) == size), None)
        if raw is None:
            raise CannotCompile(f"it answered no batch of {size} itself")
        answers: tuple[Native, Native] = (native, plan)
        rounds: list[list[float]] = [[], []]
        ends = time.monotonic() + _TIMES_SECONDS / 2
        while len(rounds[0]) < _ROUNDS and (not rounds[0] or time.monotonic() < ends):
            for place, answer in enumerate(answers):
                rounds[place].append(_seconds(answer, raw))
        before, after = (statistics.median(each) * 1e6 for each in rounds)
        found.append((before, after))
    return found


def _seconds(answer: Callable[[Raw], Predicted], raw: Raw) -> float:
    """Of one call: the mean of as many as fit into a moment."""
    calls, started = 0, time.perf_counter()
    while True:
        answer(raw)
        calls += 1
        taken = time.perf_counter() - started
        if taken >= _ROUND_SECONDS:
            return taken / calls


def _record(
    reason: str, tally: _Tally | None = None, times: list[tuple[float, float]] | None = None, *, used: bool = False
) -> Compilation:
    (native_1, ours_1), (native_64, ours_64) = times or [(0.0, 0.0), (0.0, 0.0)]
    worst = tally.worst if tally else 0.0
    return {
        "used": used,
        "reason": reason,
        "rows": tally.rows if tally else 0,
        "max_difference": worst if np.isfinite(worst) else 1e300,
        "native_us_1": round(native_1, 1),
        "compiled_us_1": round(ours_1, 1),
        "native_us_64": round(native_64, 1),
        "compiled_us_64": round(ours_64, 1),
    }
