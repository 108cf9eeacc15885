"""What people and training pipelines do to an MLflow registry, done to a real one."""

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from tests.processes import BIN, clean_environment


class Person:
    """Somebody at work on one MLflow server, with a model of a name of its own."""

    def __init__(self, uri: str, backend: str, artifacts: Path) -> None:
        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.model_id = f"churn-{uuid.uuid4().hex[:8]}"
        self._backend, self._artifacts = backend, artifacts
        self._trained = 0

    def register(self, *, metrics: dict[str, float] | None = None) -> str:
        """Train another small model and register it; returns its number."""
        self._trained += 1
        random = np.random.default_rng(self._trained)
        features = pd.DataFrame(random.normal(size=(50, 2)), columns=["age", "balance"])
        model = LogisticRegression().fit(features, features["age"] > 0)
        with self.run():
            mlflow.log_metrics(metrics or {"accuracy": 0.9})
            info = mlflow.sklearn.log_model(
                model,
                name="model",
                signature=infer_signature(features, model.predict(features)),
                registered_model_name=self.model_id,
                pip_requirements=["scikit-learn"],
                serialization_format="cloudpickle",
            )
        return str(info.registered_model_version)

    @contextmanager
    def run(self) -> Iterator[None]:
        """A run on this server. Address and experiment are global to MLflow's client, so both are set each time."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_experiment("people")
        with mlflow.start_run():
            yield

    def collect_garbage(self) -> None:
        """`mlflow gc`: what was deleted is gone for good, its files too."""
        command = [str(BIN / "mlflow"), "gc", "--backend-store-uri", self._backend]
        command += ["--artifacts-destination", self._artifacts.as_uri(), "--tracking-uri", self.uri]
        ran = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr[-2000:]

    def delete_files(self, version: str) -> None:
        """Delete the logged model behind a version and collect the garbage: the version stays listed, without files."""
        found = self.client.get_model_version(self.model_id, version)
        self.client.delete_logged_model(found.source.removeprefix("models:/"))
        self.collect_garbage()
