"""Start MLflow on a whole database: `python -m control_plane.supervision.mlflow_server FILE OPTION...`.

MLflow makes its database in some two hundred steps, each committed by itself, and cannot go on from the middle: a first
start that is broken off, even by Ctrl-C, would leave a file that no later start can use. So the file is made beside its
place and appears there by one rename.
"""

import os
import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Make the database where there is none, then become `mlflow server` with these options."""
    file, options = Path(arguments[0]), arguments[1:]
    status = 0 if file.exists() else _create(file)
    if status == 0:
        address = ["--backend-store-uri", f"sqlite:///{file}"]
        os.execv(sys.executable, [*_mlflow(), "server", *address, *options])  # noqa: S606 (ourselves, as MLflow)
    return status


def _create(file: Path) -> int:
    """Status of `mlflow db upgrade`, which fills an empty database."""
    beside = file.with_suffix(".unfinished")
    for left_over in (beside, Path(f"{beside}-journal")):
        left_over.unlink(missing_ok=True)
    made = subprocess.run([*_mlflow(), "db", "upgrade", f"sqlite:///{beside}"], check=False)  # noqa: S603 (our own)
    if made.returncode == 0:
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.rename(file)
    return made.returncode


def _mlflow() -> list[str]:
    return [sys.executable, "-P", "-m", "mlflow"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
