"""The pickled model as a peer uses it: records in, scikit-learn's answers out."""

import pickle
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A pipeline that was fitted on a DataFrame says so each time it is given an array; its answers are the same.
warnings.filterwarnings("ignore", message="X does not have valid feature names")


class ServedModel:
    """A classifier that takes records."""

    def __init__(self, file: Path) -> None:
        self._fitted, self._columns, self._numeric = pickle.loads(file.read_bytes())

    def predict(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Label and probabilities of each record, in their order."""
        probabilities = self._fitted.predict_proba(self._rows(records))
        classes = self._fitted.classes_.tolist()
        labels = probabilities.argmax(axis=1).tolist()
        names = [str(each) for each in classes]
        return [
            {"label": classes[label], "probabilities": dict(zip(names, row, strict=True))}
            for label, row in zip(labels, probabilities.tolist(), strict=True)
        ]

    def probabilities(self, rows: Any) -> Any:
        """scikit-learn's answer to rows of numbers, in the columns' order: an array (rows, classes)."""
        return self._fitted.predict_proba(rows)

    def _rows(self, records: Sequence[dict[str, Any]]) -> Any:
        if self._numeric:  # three times as fast as a DataFrame
            return np.array([[record[name] for name in self._columns] for record in records], dtype=np.float64)
        import pandas as pd  # not in every peer's environment, and only models with strings need it

        return pd.DataFrame(list(records), columns=list(self._columns))


def from_command_line() -> tuple[int, ServedModel]:
    """Port and model."""
    return int(sys.argv[1]), ServedModel(Path(sys.argv[2]))
