"""The name that a data plane's streams bear in the database: kept, since the host's may change while something waits."""

from pathlib import Path

import orjson

from serving.folders import make_folder, sync_folder
from serving.logs import logger

_FILE = "source.json"

log = logger(__name__)


def kept_source(spool_folder: Path, name: str) -> str:
    """The name under which this spool has been shipped so far; `name`, from now on, where it is a new one.

    A copy of the folder, on another host perhaps, is a new one too: by the same name each would take what the other has
    shipped for its own. It is known by the number that the file system gives a folder.
    """
    try:
        make_folder(spool_folder)
        inode = spool_folder.stat().st_ino
        return _read(spool_folder / _FILE, inode) or _keep(spool_folder, name, inode)
    except OSError as problem:  # a full disk: the next start may keep it
        log.warning("the name of the spool could not be kept", source=name, reason=problem.strerror)
        return name


def _read(file: Path, inode: int) -> str | None:
    try:
        kept = orjson.loads(file.read_bytes())
        return str(kept["name"]) if kept["folder"] == inode else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _keep(spool_folder: Path, name: str, inode: int) -> str:
    new = spool_folder / f"{_FILE}.new"
    new.write_bytes(orjson.dumps({"name": name, "folder": inode}))
    new.replace(spool_folder / _FILE)
    sync_folder(spool_folder)
    return name
