"""A virtual environment for each peer, set up once from its list of pinned versions and kept in .bench/."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.serving.peers import REQUIREMENTS

CACHE = Path(__file__).resolve().parents[2] / ".bench"
"""What the benchmark keeps between runs; remove it at will."""

_DONE = "requirements.sha256"
_LAST_LINES = 3


class NotInstalled(Exception):
    """A peer's environment could not be set up; says why in the installer's words."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the environment of {name} could not be set up: {why}")


def python_of(name: str) -> Path:
    """The Python of the environment that `peers/requirements/<name>.txt` lists, set up now if it is not there yet.

    Raises:
        NotInstalled: it cannot be.
    """
    listed = REQUIREMENTS / f"{name}.txt"
    folder = CACHE / name
    python = folder / "bin" / "python"
    digest = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()
    done = folder / _DONE
    if not (done.exists() and done.read_text() == digest):
        shutil.rmtree(folder, ignore_errors=True)
        CACHE.mkdir(exist_ok=True)
        _run(name, ["venv", "--python", sys.executable, str(folder)])
        _run(name, ["pip", "install", "--python", str(python), "--requirement", str(listed)])
        done.write_text(digest)
    return python


def _run(name: str, arguments: list[str]) -> None:
    uv = Path(sys.executable).with_name("uv")
    try:
        subprocess.run([str(uv), *arguments, "--quiet"], check=True, capture_output=True, text=True)
    except OSError as problem:
        raise NotInstalled(name, f"uv does not start: {problem}") from problem
    except subprocess.CalledProcessError as problem:
        raise NotInstalled(name, " ".join(problem.stderr.splitlines()[-_LAST_LINES:])) from problem
