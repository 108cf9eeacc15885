"""Ray Serve as its tutorial for scikit-learn has it: one deployment that is called with Starlette's request."""

import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.peers.model_file import ServedModel


@serve.deployment
class Classifier:
    """A record in, its answer out."""

    def __init__(self, file: str) -> None:
        self._served = ServedModel(Path(file))

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One record, here and now."""
        return self._served.predict([(await request.json())["input_data"]])[0]


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    application = Classifier.bind(sys.argv[2])  # type: ignore[attr-defined]  # the decorator makes it a Deployment
    # The others keep no access log either.
    serve.run(application, route_prefix="/predict", blocking=True, logging_config={"enable_access_log": False})
