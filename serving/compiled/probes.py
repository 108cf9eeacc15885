"""Rows to compare two forms of a model on: ordinary ones, odd ones, and matrices where trees are about to change sides."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from serving.compiled.columns import RowEncoder
from serving.compiled.matrix import Matrix
from serving.compiled.plan import Plan
from serving.model_input import Column, ModelInput, Raw

_UNSEEN = "never seen"
_FLOATS: tuple[Any, ...] = (
    None, 0.0, -0.0, 1, -3, 5e-324, -1e-40, 1e-300, 0.1, 2.0**24 + 1, 2.0**53 + 2, 1e30, -1e30,
)  # fmt: skip
_BEYOND_SINGLE: tuple[Any, ...] = (3.5e38, -1e39, 1e300, -1.7e308, np.inf, -np.inf)
_WHOLE: tuple[Any, ...] = (0, -1, 1, 2**24 + 1, -(2**31) + 1, 2**31 - 1)


class Probes:
    """Rows of one model. Seeded: the same model is always compared on the same rows."""

    def __init__(self, trial: Raw, model_input: ModelInput, plan: Plan) -> None:
        """`trial`: rows that the model is known to answer."""
        self._random = np.random.default_rng(0)
        self._columns = model_input.columns
        self._numeric = isinstance(trial, np.ndarray)
        self._trial: list[list[Any]] = trial.tolist() if isinstance(trial, np.ndarray) else trial
        self._known = plan.read.categories() if isinstance(plan.read, RowEncoder) else {}

    def ordinary(self, rows: int, *, spice: float) -> Raw:
        """Rows near the trial's. `spice`: share of the cells that are a gap or unseen, where the signature allows it."""
        return self._as_raw([self._row(spice) for _ in range(rows)])

    def odd(self) -> Iterator[Raw]:
        """Single rows with one unusual cell each, in an order of chance."""
        cells = [(place, cell) for place, column in enumerate(self._columns) for cell in self._unusual(place, column)]
        for index in self._random.permutation(len(cells)):
            place, cell = cells[index]
            row = self._row(0.0)
            row[place] = cell
            yield self._as_raw([row])

    def at_thresholds(self, matrix: Matrix, plan: Plan, rows: int) -> Matrix:
        """Rows of such a matrix, each with one column exactly at a threshold or at one of its neighbours among floats."""
        thresholds = plan.finish.thresholds
        assert thresholds is not None  # noqa: S101  # the caller has looked
        chosen = matrix[self._random.integers(0, len(matrix), rows)].astype(np.float64)
        for row, node in enumerate(self._random.integers(0, len(thresholds), rows)):
            column, limit = int(thresholds[node, 0]), thresholds[node, 1]
            chosen[row, column] = _neighbours(limit)[row % 6]
        return chosen

    def _as_raw(self, rows: list[list[Any]]) -> Raw:
        return np.array(rows, np.float64) if self._numeric else rows

    def _row(self, spice: float) -> list[Any]:
        row = list(self._trial[self._random.integers(len(self._trial))])
        for place, column in enumerate(self._columns):
            row[place] = self._cell(place, column, row[place], spice)
        return row

    def _cell(self, place: int, column: Column, cell: Any, spice: float) -> Any:
        spiced = self._random.random() < spice
        if spiced and not column.required and self._random.random() < 0.5:
            return None
        known = self._known.get(place)
        if known is not None:
            return self._unseen(column) if spiced else known[self._random.integers(len(known))]
        if column.type in ("string", "boolean") or cell is None or cell != cell:
            return cell
        moved = float(cell) * self._random.normal(1.0, 0.3) + self._random.normal(0.0, 0.1)
        if column.type == "float":
            return float(np.float32(moved))
        return moved if column.type == "double" else round(moved)

    def _unseen(self, column: Column) -> Any:
        if column.type == "boolean":
            return True
        return _UNSEEN if column.type == "string" else -98765

    def _unusual(self, place: int, column: Column) -> list[Any]:
        known = self._known.get(place, [])
        cells: list[Any] = list(known[:3])
        if column.type == "string":
            variants = [text + more for text in known[:2] for more in (" ", "\0")]
            cells += [_UNSEEN, "", "ünseen", *variants, *(text.swapcase() for text in known[:2]), None]
        elif column.type == "double":
            cells += [*_FLOATS, *_BEYOND_SINGLE]
        elif column.type == "float":
            cells += [None if each is None else float(np.float32(each)) for each in _FLOATS]
        elif column.type in ("long", "integer"):
            cells += [*_WHOLE, *([2**53 + 1, 2**62 + 1] if column.type == "long" else [])]
            cells += [] if column.required else [None]
        else:
            cells += [True, False] if column.required else [True, False, None]
        return cells


def _neighbours(limit: float) -> list[float]:
    with np.errstate(over="ignore"):
        single, infinite = np.float32(limit), np.float32(np.inf)
        return [
            limit, float(np.nextafter(limit, -np.inf)), float(np.nextafter(limit, np.inf)),
            float(single), float(np.nextafter(single, -infinite)), float(np.nextafter(single, infinite)),
        ]  # fmt: skip
