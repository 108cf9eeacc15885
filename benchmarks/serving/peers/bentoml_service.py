"""BentoML as its documentation has it: a service with one API of arrays and adaptive batching. `bentoml serve MODULE:Classifier`."""

import os
from pathlib import Path

import bentoml
import numpy as np

from benchmarks.serving.peers.model_file import ServedModel


# The others keep no access log either.
@bentoml.service(logging={"access": {"enabled": False}})
class Classifier:
    """Rows in, probabilities out."""

    def __init__(self) -> None:
        self._served = ServedModel(Path(os.environ["BENCH_MODEL"]))

    @bentoml.api(batchable=True, batch_dim=0)  # type: ignore[untyped-decorator]  # BentoML is in an environment of its own
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """All rows in one call."""
        answer: np.ndarray = self._served.probabilities(rows)
        return answer
