"""What the agent keeps on disk: the last table, and the versions that a worker loads when it starts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from serving.agent.route_table import Table
from serving.desired import NOTHING_DESIRED, DesiredState, Key
from serving.folders import sync_folder
from serving.load_journal import journal_file, read_left_out
from serving.logs import logger
from serving.routing import RoutingTable

log = logger(__name__)


class ReplicaFiles:
    """The files of one data plane that let it start when nothing else is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = folder / "table.json"
        self._versions = folder / "versions.json"

    def read_table(self) -> tuple[DesiredState, dict[Key, int]]:
        """What the last table wanted, and the slots dealt out so far. Nothing when it is missing or damaged."""
        try:
            content = orjson.loads(self._table.read_bytes())
            desired = DesiredState.from_table(RoutingTable.from_json(content))
            slots = {(each["model_id"], each["version"]): int(each["slot"]) for each in content.get("slots", [])}
        except FileNotFoundError:
            log.info("no table of an earlier life", file=str(self._table))
            return NOTHING_DESIRED, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            log.warning("the kept table cannot be read, starting without", file=str(self._table), reason=repr(problem)[:300])  # fmt: skip
            return NOTHING_DESIRED, {}
        return desired, slots

    def keep_table(self, table: Table, slots: Mapping[Key, int]) -> bool:
        """Keep it for a start without database. False when the disk does not take it."""
        dealt = [{"model_id": key[0], "version": key[1], "slot": slot} for key, slot in slots.items()]
        return _write(self._table, {**table, "slots": dealt})

    def read_proven(self) -> dict[Key, str]:
        """Digests of the versions that the spare has proven in an earlier life."""
        try:
            listed = orjson.loads(self._versions.read_bytes())["versions"]
            return {(each["model_id"], each["version"]): each["digest"] for each in listed}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as problem:
            log.warning("the kept list of versions cannot be read", file=str(self._versions), reason=repr(problem)[:300])  # fmt: skip
            return {}

    def read_left_out(self, worker: int) -> dict[Key, str]:
        """Digests of what this worker left out when it started, since its predecessors ended while they loaded it."""
        marks = read_left_out(journal_file(self._folder, worker))
        return {(mark.model_id, mark.version): mark.digest for mark in marks}

    def keep_proven(self, versions: Sequence[Mapping[str, Any]]) -> bool:
        """What a worker that starts loads. False when the disk does not take it."""
        return _write(self._versions, {"versions": list(versions)})


def _write(file: Path, content: Mapping[str, Any]) -> bool:
    """Whole or not at all, also after a power failure."""
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with beside.open("wb") as written:
            written.write(orjson.dumps(content))
            written.flush()
            os.fsync(written.fileno())
        beside.replace(file)
        sync_folder(file.parent)
    except OSError as problem:
        log.error("cannot keep a file that a restart would need", file=str(file), reason=problem.strerror)  # noqa: TRY400
        return False
    return True
