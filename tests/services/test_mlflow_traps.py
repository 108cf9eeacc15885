"""Traps of MLflow, each sprung on a real server: what the client would do, and that ours does not."""

import pickle
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import mlflow.sklearn
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier

from control_plane.errors import RegistryUnreachable
from control_plane.registry import VersionManager, VersionState
from control_plane.registry.mlflow_registry import MlflowRegistry
from control_plane.storage.setup import create_database
from serving.artifacts import ArtifactStore
from serving.store import Database, open_database
from tests.conftest import MlflowServer
from tests.mlflow_person import Person
from tests.processes import PYTHON, ROOT, clean_environment


@pytest.fixture
def person(mlflow_server: MlflowServer) -> Person:
    return Person(mlflow_server.uri, mlflow_server.backend, mlflow_server.artifacts)


@pytest.fixture
def registry(mlflow_server: MlflowServer) -> MlflowRegistry:
    return MlflowRegistry(mlflow_server.uri, timeout=20, retries=0)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'switchyard.db'}"
    create_database(url, 5)
    database = open_database(url, 5)
    yield database
    database.close()


def test_searching_versions_shows_no_aliases_ours_does(
    person: Person, registry: MlflowRegistry, ours: Database, tmp_path: Path
) -> None:
    """MLflow's search answers with empty alias lists, always: the champion would be invisible in every list."""
    version = person.register()
    person.client.set_registered_model_alias(person.model_id, "champion", version)
    (searched,) = person.client.search_model_versions(f"name = '{person.model_id}'")
    assert searched.aliases == []  # the trap; when this fails, MLflow has mended it
    manager = VersionManager(ours, registry, ArtifactStore(tmp_path / "artifacts"))
    (listed,) = manager.versions(person.model_id).items
    assert listed.aliases == ["champion"]


def test_versions_are_numbers_through_the_file_and_texts_through_a_server(
    person: Person, mlflow_server: MlflowServer, registry: MlflowRegistry
) -> None:
    """A comparison of 3 with "3" is quietly false, and a rollback finds no target."""
    version = person.register()
    through_file = MlflowClient(tracking_uri=mlflow_server.backend, registry_uri=mlflow_server.backend)
    raw = through_file.get_model_version(person.model_id, version)
    assert isinstance(raw.version, int)  # the trap
    for each in (registry, MlflowRegistry(mlflow_server.backend, timeout=5, retries=0)):
        found = each.versions(person.model_id)
        assert found
        assert [one.version for one in found] == ["1"]
        person.client.set_registered_model_alias(person.model_id, "champion", version)
        assert each.aliases(person.model_id) == {"champion": "1"}


def test_a_wrong_sqlite_path_creates_nothing(tmp_path: Path) -> None:
    """MLflow makes folders and a new empty registry of a mistyped path, and then knows no model."""
    missing = tmp_path / "typo" / "mlflow.db"
    with pytest.raises(RegistryUnreachable, match="is not created here"):
        MlflowRegistry(f"sqlite:///{missing}", timeout=5, retries=0).models()
    assert not missing.parent.exists()
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(RegistryUnreachable):
        MlflowRegistry(f"sqlite:///{empty}", timeout=5, retries=0).versions("flights")
    assert empty.stat().st_size == 0


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "databricks", "ftp://x", ""])
def test_addresses_that_cannot_work_are_refused_with_what_would(uri: str) -> None:
    """A folder named like a typo must not become a registry either."""
    with pytest.raises(RegistryUnreachable, match="expected http://host:port"):
        MlflowRegistry(uri, timeout=5, retries=0).models()


@contextmanager
def _hanging_server() -> Iterator[str]:
    """Accepts and never answers, as a server does that is stopped or stuck."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_registry_that_is_down_or_hangs_is_told_in_seconds() -> None:
    """With MLflow's defaults each call blocks for four minutes, and every thread of ours with it."""
    with _hanging_server() as hanging:
        for uri in ("http://127.0.0.1:1", hanging):
            registry = MlflowRegistry(uri, timeout=1, retries=1)
            asks: list[Callable[[], object]] = [registry.ping, registry.models]
            asks += [partial(registry.versions, "x"), partial(registry.aliases, "x")]
            for ask in asks:
                started = time.monotonic()
                with pytest.raises(RegistryUnreachable, match=r"connection refused|no answer within 1 s") as caught:
                    ask()
                assert time.monotonic() - started < 20  # a guard: 2 s expected
                assert uri in caught.value.detail


def test_a_damaged_pickle_loads_without_complaint_and_is_refused_by_us(
    person: Person, registry: MlflowRegistry, ours: Database, tmp_path: Path
) -> None:
    """Only the digest tells a damaged forest from a whole one."""
    features, labels = make_classification(200, random_state=0)
    forest = RandomForestClassifier(3, random_state=0).fit(features, labels)
    with person.run():
        mlflow.sklearn.log_model(
            forest,
            name="model",
            registered_model_name=person.model_id,
            pip_requirements=["scikit-learn"],
            serialization_format="cloudpickle",
        )
    artifacts = ArtifactStore(tmp_path / "artifacts")
    kept = VersionManager(ours, registry, artifacts).prepare(person.model_id, "1")
    file = kept.folder / "model.pkl"
    blob = file.read_bytes()
    leaf = blob.rindex(b"\x00\x00\x00\x00\x00\x00\xf0\x3f")
    file.chmod(0o644)
    file.write_bytes(blob[:leaf] + bytes(8) + blob[leaf + 8 :])
    pickle.loads(file.read_bytes())  # the trap: no error
    again = VersionManager(ours, registry, artifacts).prepare(person.model_id, "1")  # fetched anew, to the byte
    assert (again.folder / "model.pkl").read_bytes() == blob


def test_trees_cannot_be_logged_in_the_default_format(person: Person) -> None:
    """MLflow's default format refuses forests: examples and docs must name the format, and this says when they need not."""
    features, labels = make_classification(50, random_state=0)
    forest = RandomForestClassifier(2, random_state=0).fit(features, labels)
    with person.run(), pytest.raises(MlflowException, match="untrusted types"):
        mlflow.sklearn.log_model(forest, name="model", pip_requirements=["scikit-learn"])


def test_nothing_is_left_in_the_temporary_folder(
    person: Person, registry: MlflowRegistry, ours: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every load through MLflow leaves a copy of the model there, until the disk is full."""
    version = person.register()
    room = tmp_path / "tmp"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    mlflow.set_tracking_uri(person.uri)
    mlflow.sklearn.load_model(f"models:/{person.model_id}/{version}")
    assert list(room.iterdir())  # the trap
    before = sorted(room.iterdir())
    manager = VersionManager(ours, registry, ArtifactStore(tmp_path / "artifacts"))
    manager.versions(person.model_id)
    manager.prepare(person.model_id, version)
    assert sorted(room.iterdir()) == before
    assert list((tmp_path / "artifacts" / "incoming").iterdir()) == []


def test_a_version_outlives_deletion_and_garbage_collection(
    person: Person, registry: MlflowRegistry, ours: Database, tmp_path: Path
) -> None:
    """The whole way through a real `mlflow gc`: what was prepared can still be loaded, and predicts the same."""
    kept_number, lost_number = (
        person.register(metrics={"accuracy": 0.8, "loss": float("nan"), "worst": float("inf")}),
        person.register(),
    )
    manager = VersionManager(ours, registry, ArtifactStore(tmp_path / "artifacts"))
    kept = manager.prepare(person.model_id, kept_number)
    person.delete_files(kept_number)
    person.delete_files(lost_number)
    states = {each.version: each.state for each in manager.versions(person.model_id).items}
    assert states == {kept_number: VersionState.KEPT, lost_number: VersionState.LOST}
    person.client.delete_registered_model(person.model_id)
    (listed,) = manager.versions(person.model_id).items
    assert (listed.state, listed.metrics) == (VersionState.REMOVED, {"accuracy": 0.8, "loss": None, "worst": None})
    assert listed.signature
    assert [column["name"] for column in listed.signature["inputs"]] == ["age", "balance"]
    assert manager.prepare(person.model_id, kept_number) == kept
    model = mlflow.sklearn.load_model(str(kept.folder))
    assert model.predict(pd.DataFrame({"age": [3.0], "balance": [0.0]})).tolist() == [True]


def test_who_and_when_are_known(person: Person, registry: MlflowRegistry, ours: Database, tmp_path: Path) -> None:
    """MLflow leaves the author of a version empty; the run knows."""
    person.register()
    (listed,) = VersionManager(ours, registry, ArtifactStore(tmp_path / "artifacts")).versions(person.model_id).items
    assert listed.created_by
    assert abs(listed.created_at.timestamp() - time.time()) < 3600
    assert listed.size_bytes
    assert listed.size_bytes > 100


def test_many_at_once_get_the_same_copy(
    person: Person, registry: MlflowRegistry, ours: Database, tmp_path: Path
) -> None:
    """Two changes that prepare one version at the same moment must not trip over one another."""
    version = person.register()
    manager = VersionManager(ours, registry, ArtifactStore(tmp_path / "artifacts"))
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda: digests.append(manager.prepare(person.model_id, version).digest))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(digests) == 6
    assert len(set(digests)) == 1


def test_telemetry_is_off() -> None:
    """Nobody's use of this is anybody's business."""
    script = (
        "import control_plane.registry.mlflow_registry, mlflow.telemetry.utils as t; print(t.is_telemetry_disabled())"
    )
    environment = {name: value for name, value in clean_environment().items() if name not in ("CI", "DO_NOT_TRACK")}
    ran = subprocess.run([PYTHON, "-c", script], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ran.stdout.strip() == "True", ran.stderr


def test_a_name_that_mlflow_cannot_be_asked_for_does_not_bring_another_models_versions(
    person: Person, registry: MlflowRegistry
) -> None:
    """MLflow's filter knows no escape: asked for a'b"c, it would answer for a'bc, and that would be prepared."""
    other = f"{person.model_id}'bc"
    person.client.create_registered_model(other)
    person.client.create_model_version(other, "s3://bucket/model")
    assert registry.versions(other.replace("'b", "'b\"")) is None


def test_one_version_with_an_unreadable_file_does_not_hide_the_others(
    person: Person, registry: MlflowRegistry, ours: Database, tmp_path: Path
) -> None:
    """Anybody may register any folder, and the list of all versions was an error 500 from then on."""
    whole = person.register()
    for text in ("{{{: [", "", "- a list", "\x00", "flavors: {}"):
        (tmp_path / "MLmodel").write_text(text)
        with person.run():
            mlflow.log_artifact(str(tmp_path / "MLmodel"), "model")
            run = mlflow.active_run()
            assert run
            person.client.create_model_version(person.model_id, f"{run.info.artifact_uri}/model", run.info.run_id)
    manager = VersionManager(ours, registry, ArtifactStore(tmp_path / "artifacts"))
    listed = manager.versions(person.model_id).items
    assert len(listed) == 6
    assert {each.state for each in listed} == {VersionState.REGISTERED}  # their files are there: they are not lost
    assert [each.version for each in listed if each.signature] == [whole]
