"""The control plane as a process of its own, in the worst of company."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from control_plane.storage.setup import create_database
from tests.processes import PYTHON, answers, clean_environment, free_port, running, wait_until


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """Its address, its log and its process; no database, and a registry that is down."""
    port = free_port()
    settings = {
        "SWITCHYARD_CONTROL_PLANE_PORT": str(port),
        "SWITCHYARD_DATA_FOLDER": str(tmp_path),
        "SWITCHYARD_MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
        "SWITCHYARD_REGISTRY_TIMEOUT": "1",
        "SWITCHYARD_PROJECTION_INTERVAL": "0.2",
    }
    log = tmp_path / "control-plane.log"
    with running([PYTHON, "-m", "control_plane"], log=log, environment=settings) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/health/live"), "the control plane to live", 60)
        yield url, log, process


def test_it_starts_without_database_and_registry_and_heals(
    alone: tuple[str, Path, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """In a bad night things come up in any order; nobody should have to restart us afterwards."""
    url, log, process = alone
    ready = httpx.get(f"{url}/health/ready", timeout=30)
    assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
    assert [check["ok"] for check in ready.json()["checks"]] == [False, False]
    assert httpx.get(f"{url}/ml/models", timeout=30).json()["error"] == "DatabaseMissing"
    create_database(f"sqlite:///{tmp_path / 'switchyard.db'}", 5)
    wait_until(lambda: answers(f"{url}/health/ready"), "the database to be noticed", 30)
    assert httpx.get(f"{url}/health/ready", timeout=30).json()["status"] == "degraded"
    models = httpx.get(f"{url}/ml/models", timeout=30).json()
    assert models["items"] == []
    assert "connection refused" in models["unavailable"]["registry"]
    assert process.poll() is None
    # Three duties, each of which may meet the missing database first and the missing registry then.
    assert log.read_text().count("duty waits") <= 6, "the same trouble is said once, not at every try"
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert "Traceback" not in log.read_text()


def test_wrong_settings_end_it_with_one_clear_text(tmp_path: Path) -> None:
    """Under a supervisor of somebody else's it must say what is wrong as well."""
    for name, value, says in (
        ("SWITCHYARD_CONTROL_PLANE_PORT", "web", "SWITCHYARD_CONTROL_PLANE_PORT='web'"),
        ("SWITCHYARD_DATABASE_URL", "mysql://u:secret@h/x", "expected sqlite:////absolute/file.db"),
    ):
        command = [PYTHON, "-m", "control_plane"]
        environment = {**clean_environment(), name: value}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert ran.returncode == 2
        assert says in ran.stderr
        assert "Traceback" not in ran.stderr
        assert "secret" not in ran.stderr
    assert list(tmp_path.iterdir()) == []
