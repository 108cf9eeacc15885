"""The import contracts go red: a rule that cannot fail holds nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import BIN, ROOT


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and their contracts."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in ("serving", "control_plane", "flows"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def contracts(checkout: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` on the copy."""
    command = [str(BIN / "lint-imports"), "--no-cache"]
    return subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(checkout)}
    )


def test_the_code_keeps_them(checkout: Path) -> None:
    """And the copy is looked at, not the installed packages."""
    ran = contracts(checkout)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("serving/store/tables.py", "import control_plane.settings", "One direction"),
        ("control_plane/services.py", "import flows.housekeeping", "One direction"),
        ("control_plane/services.py", "import serving.server", "nothing of its engine"),
        ("flows/housekeeping.py", "import serving.dispatch", "nothing of its engine"),
        ("control_plane/storage/routes.py", "import control_plane.registry.versions", "The rooms of the control plane"),
        ("control_plane/api/models.py", "import control_plane.duties", "The rooms of the control plane"),
        ("serving/channel.py", "import serving.dispatch", "The rooms of the data plane"),
        ("serving/loader.py", "import mlflow", "does not know MLflow"),
        ("control_plane/rollback/manager.py", "import serving.agent", "nothing of its engine"),
        (
            "control_plane/registry/versions.py",
            "import control_plane.rollback.manager",
            "The rooms of the control plane",
        ),
        ("serving/input_schema/schema.py", "import time", "Decisions do no I/O"),
        ("control_plane/cli.py", "import control_plane.app", "The command line starts processes"),
        ("serving/routing.py", "import time", "Decisions do no I/O"),
        ("control_plane/errors.py", "import httpx", "Decisions do no I/O"),
        ("control_plane/somewhere.py", "", "not listed as layers"),
        ("serving/somewhere.py", "", "not listed as layers"),
    ],
)
def test_a_forbidden_import_turns_them_red(checkout: Path, file: str, line: str, broken: str) -> None:
    """Each rule, broken once."""
    path = checkout / file
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n")
    try:
        ran = contracts(checkout)
    finally:
        path.write_text(before) if before is not None else path.unlink()
    assert ran.returncode != 0
    assert broken in ran.stdout, ran.stdout
