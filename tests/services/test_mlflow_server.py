"""The start of MLflow: its database is there whole or not at all."""

import signal
import subprocess
from pathlib import Path

import httpx

from tests.processes import PYTHON, answers, descendants, free_port, running, wait_until


def command(file: Path, port: int) -> list[str]:
    start = [PYTHON, "-m", "control_plane.supervision.mlflow_server", str(file), "--host", "127.0.0.1"]
    return [*start, "--workers", "1", "--port", str(port), "--artifacts-destination", str(file.parent / "artifacts")]


def test_a_first_start_that_is_killed_halfway_does_not_ruin_the_registry(tmp_path: Path) -> None:
    """MLflow cannot go on with a half-made database: one early Ctrl-C, and no later start would work."""
    file, port = tmp_path / "mlflow.db", free_port()
    beside = tmp_path / "mlflow.unfinished"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command(file, port), log=tmp_path / "first.log", environment=quiet) as first:
        wait_until(lambda: beside.exists() and beside.stat().st_size > 100_000, "the database to be half made", 60)
        for each in reversed(descendants(first.pid)):
            each.send_signal(signal.SIGKILL)
        first.wait(30)
    assert not file.exists()
    with running(command(file, port), log=tmp_path / "second.log", environment=quiet) as second:
        wait_until(
            lambda: second.poll() is not None or answers(f"http://127.0.0.1:{port}/health"), "MLflow to answer", 120
        )
        assert second.poll() is None, (tmp_path / "second.log").read_text()
        found = httpx.get(f"http://127.0.0.1:{port}/api/2.0/mlflow/registered-models/search", timeout=30)
        assert found.status_code == 200
    assert not beside.exists()


def test_a_database_that_cannot_be_made_is_a_failed_start(tmp_path: Path) -> None:
    """And not a server on some other database."""
    (tmp_path / "file").write_text("in the way")
    ran = subprocess.run(command(tmp_path / "file" / "mlflow.db", free_port()), capture_output=True, timeout=120)
    assert ran.returncode != 0
