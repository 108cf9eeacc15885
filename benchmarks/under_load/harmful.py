"""Models that do harm with some rows, as MLflow saves them. A row's columns are `a` and `b`."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.under_load.telltale import save, value_of

PILL = 999_999
"""The value of column `a` that they cannot bear; of other rows they answer as telltale number HARMFUL does."""
HARMFUL = 9
HOG_MB = 1_500
"""What the model that needs too much memory takes."""


def save_raising(folder: Path) -> Path:
    """Raises when a batch holds the pill."""

    def act() -> None:
        raise ArithmeticError("it cannot bear that row")

    return save(folder / "raising", _spoiled(act))


def save_hanging(folder: Path) -> Path:
    """Does not come back when a batch holds the pill."""

    def act() -> None:
        while True:
            time.sleep(1.0)

    return save(folder / "hanging", _spoiled(act))


def save_crashing(folder: Path) -> Path:
    """Ends its process when a batch holds the pill."""
    return save(folder / "crashing", _spoiled(lambda: os._exit(9)))


def save_hog(folder: Path) -> Path:
    """Takes HOG_MB as soon as it is loaded, and never gives them back."""
    from sklearn.linear_model import LinearRegression

    size = HOG_MB << 20

    class Hog(LinearRegression):  # type: ignore[misc]
        def __setstate__(self, state: Any) -> None:
            super().__setstate__(state)
            self.held = np.ones(size, dtype=np.uint8)

    return save(folder / "hog", _fitted(Hog()))


def _spoiled(act: Any) -> Any:
    from sklearn.linear_model import LinearRegression

    pill = float(PILL)

    # A class inside a function is pickled whole, so that it loads where this module is not.
    class Spoiled(LinearRegression):  # type: ignore[misc]
        def predict(self, X: Any) -> Any:  # noqa: N803  # scikit-learn's name
            if (np.asarray(X)[:, 0] == pill).any():
                act()
            return super().predict(X)

    return _fitted(Spoiled())


def _fitted(model: Any) -> Any:
    model.fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 2.0])
    model.coef_, model.intercept_ = np.array([1e3, 1.0]), value_of(HARMFUL, 1, 0, 0)
    model.feature_names_in_ = np.array(["a", "b"], dtype=object)
    return model
