"""A compiled pipeline: rows, to a matrix, through some steps, to answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.compiled.columns import RowEncoder
from serving.compiled.estimators import Finish, read_estimator
from serving.compiled.matrix import Matrix, Step, apply_steps, chain_of, kind_of, read_steps
from serving.compiled.refusals import CannotCompile
from serving.engines import ClassifierEngine, Engine, RegressorEngine
from serving.model_input import ModelInput, Raw


class NumberReader:
    """Rows that are numbers, as the matrix that scikit-learn is given."""

    def __init__(self, model_input: ModelInput) -> None:
        self._input = model_input
        self.dtype = model_input.to_array(np.zeros((1, len(model_input.columns)))).dtype

    def __call__(self, raw: Raw) -> Matrix:
        """Raises ValueError for rows of another form."""
        if isinstance(raw, np.ndarray) and self.dtype == np.float64:
            return raw
        return self._input.to_array(raw)


@dataclass(frozen=True)
class Plan:
    """Answers rows as the pipeline does; see `compile_plan`."""

    read: RowEncoder | NumberReader
    steps: list[Step]
    finish: Finish

    def __call__(self, raw: Raw) -> NDArray[np.float64]:
        """One answer per row. Raises AskNative for what is scikit-learn's to answer; another error is a fault of ours."""
        return self.finish.answer(self.matrix(raw))

    def matrix(self, raw: Raw) -> Matrix:
        """What the last step is given. Raises AskNative."""
        return apply_steps(self.steps, self.read(raw))


def compile_plan(model: Any, engine: Engine, model_input: ModelInput, *, arrays: bool) -> Plan:
    """The compiled form of a loaded model.

    arrays: whether it is given arrays of numbers, by position; else DataFrames, by name.

    Raises:
        CannotCompile: some part of it is not understood; says which.
        Exception: it lacks what a fitted model of its kind has.
    """
    if not isinstance(engine, ClassifierEngine | RegressorEngine):
        raise CannotCompile("it is no classifier or regressor of scikit-learn's interface")
    if not model_input.columns:
        raise CannotCompile("its signature names no columns")
    *chain, last = chain_of(model)
    if not chain and kind_of(last) == "Booster":
        raise CannotCompile("LightGBM's Booster is called directly already")
    if chain and kind_of(chain[0]) == "ColumnTransformer":
        if arrays:
            raise CannotCompile("its ColumnTransformer goes by positions")
        return _by_names(chain, last, engine, model_input)
    if not arrays:
        raise CannotCompile("it is given DataFrames, and not by way of a ColumnTransformer")
    reader = NumberReader(model_input)
    width = len(model_input.columns)
    plan = Plan(reader, read_steps(chain, width, reader.dtype), read_estimator(last, engine, width, is_sparse=False))
    if not plan.steps and not plan.finish.is_direct:
        raise CannotCompile(f"{kind_of(last)} is not compiled, and there is nothing in front of it")
    return plan


def _by_names(chain: list[Any], last: Any, engine: Engine, model_input: ModelInput) -> Plan:
    encoder = RowEncoder(chain[0], model_input)
    if encoder.is_sparse and len(chain) > 1:
        raise CannotCompile(f"its {kind_of(chain[1])} is given a sparse matrix")
    steps = read_steps(chain[1:], encoder.width, np.dtype(np.float64))
    return Plan(encoder, steps, read_estimator(last, engine, encoder.width, is_sparse=encoder.is_sparse))
