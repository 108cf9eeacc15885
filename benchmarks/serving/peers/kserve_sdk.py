"""KServe's SDK as its documentation has it: a Model with `load` and `predict` (protocol V1), one ModelServer."""

import logging
import sys
from pathlib import Path
from typing import Any

from kserve import Model, ModelServer

from benchmarks.serving.peers.model_file import ServedModel


class Classifier(Model):  # type: ignore[misc]  # KServe is in an environment of its own
    """Instances in, probabilities out."""

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(name)
        self._file = file
        self.load()

    def load(self) -> bool:
        """Read the pickle."""
        self._served = ServedModel(self._file)
        self.ready = True
        return self.ready

    async def predict(
        self,
        payload: dict[str, Any],
        headers: dict[str, str] | None = None,  # noqa: ARG002  # KServe's signature
        response_headers: dict[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """All instances in one call."""
        return {"predictions": self._served.probabilities(payload["instances"]).tolist()}


if __name__ == "__main__":
    port, file = int(sys.argv[1]), Path(sys.argv[2])
    server = ModelServer(http_port=port, enable_grpc=False, enable_latency_logging=False)
    logging.disable(logging.INFO)  # the others keep no access log either
    server.start([Classifier(file.stem, file)])
