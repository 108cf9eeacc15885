"""What was found of a version, kept beside its files: so that a worker that starts again does not compare for a second."""

import hashlib
import importlib.metadata
import platform
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

import orjson

from serving.contracts import Compilation

_LIBRARIES = ("numpy", "scipy", "pandas", "scikit-learn", "lightgbm")
_KEYS = Compilation.__required_keys__


def place_of(home: Path) -> Path:
    """Where the verdict on the version whose files are in this folder is kept; another one for other libraries or code."""
    return home / "compiled" / f"{_circumstances()}.json"


def recall(place: Path) -> Compilation | None:
    """A verdict that the compiled form is right and faster; None where there is none, or it cannot be read."""
    try:
        found: Compilation = orjson.loads(place.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() == _KEYS and found["used"] is True else None


def remember(place: Path, record: Compilation) -> None:
    """Keep it, if it says that the compiled form is used: another verdict may be the fault of a busy machine.

    Where the folder cannot be written to, each worker compares for itself.
    """
    if not record["used"]:
        return
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        beside = place.with_suffix(f".{uuid.uuid4().hex}.new")
        beside.write_bytes(orjson.dumps(record))
        beside.replace(place)


@cache
def _circumstances() -> str:
    """What decides whether an old verdict still holds: libraries, our own code, and the kind of machine."""
    seen = hashlib.sha256(f"{platform.machine()} {platform.python_version()}\n".encode())
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            seen.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        seen.update(file.read_bytes())
    return seen.hexdigest()[:16]
