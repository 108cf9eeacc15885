"""Microseconds per batch of models as they are and compiled, in one process, without HTTP. Run by `make bench`.

    python -m benchmarks.inference [--rounds N] [--write]

Every model is fitted, logged by MLflow, and loaded by the loader that workers use, once as it is and once compiled;
both answer the same rows in turns. With --write the figures go into docs/performance.md. Status 1 when an answer differs.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks import pages
from examples.flights.data import FEATURES, STRINGS
from examples.flights.training import train
from serving.artifacts import ArtifactStore
from serving.contracts import Compilation
from serving.loader import LoadedModel, ModelLoader

SIZES = (1, 16, 64)
_PAGE = pages.DOCS / "performance.md"
_ASKED = 256  # different rows of each model
_ROUND_SECONDS = 0.03
_TRAINED_ON = 20_000
_SEED = 20130101


@dataclass(frozen=True)
class Case:
    """A fitted model and rows for it."""

    title: str
    fitted: Any
    frame: pd.DataFrame


@dataclass(frozen=True)
class Measured:
    """Microseconds per batch, medians; and the largest difference between two answers."""

    title: str
    native: dict[int, float]
    compiled: dict[int, float]
    difference: float
    record: Compilation


def main(arguments: Sequence[str]) -> int:
    """Measure, print, perhaps write the page; the exit status."""
    options = _options(arguments)
    if options.only and "inference" not in options.only:
        return 0
    rounds = 1 if options.quick else max(1, options.rounds)
    found = []
    with threadpool_limits(1):  # as in a worker
        for make in _CASES:
            found.append(_measure(make(), rounds))
            print(found[-1].title, found[-1].record, flush=True)
    print(pages.table(_HEAD, [_cells(each) for each in found]))
    if options.write:
        pages.write_section(_PAGE, "inference", _section(found, arguments))
        print(f"written into docs/{_PAGE.name}")
    return int(any(not each.difference <= 1e-9 for each in found))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each figure (default: 7)")
    parser.add_argument("--quick", action="store_true", help="one measurement of each figure")
    parser.add_argument("--only", nargs="+", metavar="PART", help="does nothing unless `inference` is among them")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    return parser.parse_args(arguments)


def _tumours(title: str, model: Any) -> Case:
    table = load_breast_cancer(as_frame=True)
    frame = table.data.set_axis([name.replace(" ", "_") for name in table.data.columns], axis=1)
    return Case(title, model.fit(frame, table.target), frame)


def _flights(kind: Any) -> Case:
    trained = train([1], kind, rows=_TRAINED_ON)
    return Case(f"flights example, {kind}", trained.pipeline, trained.reference[FEATURES])


_CASES: tuple[Callable[[], Case], ...] = (
    lambda: _tumours(
        "StandardScaler, LogisticRegression, 30 numbers", make_pipeline(StandardScaler(), LogisticRegression())
    ),
    lambda: _flights("logistic"),
    lambda: _flights("boosting"),
    lambda: _tumours("RandomForest, 100 trees", RandomForestClassifier(100, random_state=_SEED, n_jobs=1)),
    lambda: _tumours("HistGradientBoosting, 100 iterations", HistGradientBoostingClassifier(random_state=_SEED)),
    lambda: _tumours("LGBMClassifier, 100 trees", lightgbm.LGBMClassifier(n_jobs=1, verbosity=-1)),
)


def _measure(case: Case, rounds: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        native, compiled = _loaded(case, Path(folder))
    raw = _rows(case)
    before, after = native.answer_rows(raw, b""), compiled.answer_rows(raw, b"")
    difference = float(np.abs(np.asarray(before) - np.asarray(after)).max())
    times: dict[str, dict[int, float]] = {"native": {}, "compiled": {}}
    for size in SIZES:
        batches = [raw[start : start + size] for start in range(0, len(raw), size)]
        found: dict[str, list[float]] = {"native": [], "compiled": []}
        for _ in range(rounds):
            found["native"].append(_seconds(native, batches))
            found["compiled"].append(_seconds(compiled, batches))
        for name, some in found.items():
            times[name][size] = statistics.median(some) * 1e6
    assert compiled.held.compilation is not None
    return Measured(case.title, times["native"], times["compiled"], difference, compiled.held.compilation)


def _loaded(case: Case, folder: Path) -> tuple[LoadedModel, LoadedModel]:
    """The model as workers have it: as it is, and compiled."""
    import mlflow.sklearn  # slow
    from mlflow.models import infer_signature

    mlflow.sklearn.save_model(
        case.fitted,
        folder / "model",
        signature=infer_signature(case.frame, case.fitted.predict(case.frame)),
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
    )
    store = ArtifactStore(folder / "artifacts")
    digest = store.put(lambda kept: shutil.copytree(folder / "model", kept, dirs_exist_ok=True)).digest
    loader = ModelLoader(store)
    native, compiled = (
        loader.load("m", "1", digest, batch_size=_ASKED, warmup_requests=2, compiled=each) for each in (False, True)
    )
    return native, compiled


def _rows(case: Case) -> Any:
    """Rows as they travel to a worker: numbers as an array, else lists."""
    frame = case.frame.head(_ASKED)
    if not set(STRINGS) & set(frame.columns):
        return frame.to_numpy(np.float64)
    return [[None if pd.isna(cell) else cell for cell in row] for row in frame.astype(object).to_numpy().tolist()]


def _seconds(model: LoadedModel, batches: list[Any]) -> float:
    """Of one batch: the mean over all of them, as often as it fits into a moment."""
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < _ROUND_SECONDS:
        for batch in batches[:64]:
            model.answer_rows(batch, b"")
            calls += 1
    return (time.perf_counter() - started) / calls


_FIGURES = [f"{size} {form}" for size in SIZES for form in ("as it is", "compiled")]
_HEAD = ("microseconds per batch of", *_FIGURES, "times as fast, 1 / 64", "largest difference")


def _cells(measured: Measured) -> list[str]:
    figures = [f"{form[size]:,.0f}" for size in SIZES for form in (measured.native, measured.compiled)]
    gains = " / ".join(f"{measured.native[size] / measured.compiled[size]:.1f}" for size in (1, 64))
    return [measured.title, *figures, gains if measured.record["used"] else "not used", f"{measured.difference:.0e}"]


def _section(found: Sequence[Measured], arguments: Sequence[str]) -> str:
    return "\n\n".join(
        (
            pages.measured_on("benchmarks.inference", arguments),
            "One process, one thread, no HTTP: from the rows as they arrive in a worker to the answers. Both forms are "
            "loaded by the loader of the workers and take turns; medians. The last column compares all answers.",
            pages.table(_HEAD, [_cells(each) for each in found]),
        )
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
