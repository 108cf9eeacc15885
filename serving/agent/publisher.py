"""What the agent makes known: the table to HTTP processes at each change, and on disk what a restart needs."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.agent.files import ReplicaFiles
from serving.agent.route_table import Slots, Table, build_table, known_versions, main_version
from serving.agent.standing import Standing
from serving.agent.tables import TableServer
from serving.contracts import ModelServingConfig
from serving.desired import NOTHING_DESIRED, Key, WantedVersion
from serving.logs import logger

log = logger(__name__)


class Publisher:
    """Writes and sends only what has changed."""

    def __init__(
        self,
        standing: Standing,
        tables: TableServer,
        files: ReplicaFiles,
        slots: Mapping[Key, int],
        artifact_folder: Path,
    ) -> None:
        """`slots`: as dealt out in an earlier life."""
        self._standing = standing
        self._tables = tables
        self._files = files
        self._slots = Slots(slots)
        self._artifact_folder = artifact_folder
        self._known: dict[Key, WantedVersion] = dict(standing.desired.versions)
        self._table: Table | None = None
        self._kept_table: Table | None = None
        self._kept_proven: list[dict[str, Any]] | None = None

    def publish(self) -> None:
        """Push the table if it is another one. Does not wait for the disk: a full one must not stop a rollback."""
        desired = self._standing.desired
        if desired is NOTHING_DESIRED and not self._standing.certain:
            return  # it is not known what should be served, which is another thing than nothing
        self._known = known_versions(desired, self._standing.held, self._known)
        configs = {name: self._config(name) for name in desired.models}
        slots = self._slots.of(self._known)
        table = build_table(desired, self._known, slots, configs, certain=self._standing.certain)
        if table != self._table:
            self._table = table
            self._tables.push(table)
            log.info("new table", generation=desired.generation, models=len(desired.models), versions=len(self._known))

    async def keep_files(self) -> None:
        """Bring the files up to date.

        Between the end of this and the next turn of the event loop, every proven version is on the list of those
        that a worker starts with: so none is loaded anywhere but in the spare before.
        """
        table, slots = self._table, self._slots.dealt
        if table is not None and table != self._kept_table:
            self._kept_table = table if await asyncio.to_thread(self._files.keep_table, table, slots) else None
        # Once more if a version was proven meanwhile. By a snapshot alone the list would lose what it does not know.
        while self._standing.certain and (proven := self._proven()) != self._kept_proven:
            kept = await asyncio.to_thread(self._files.keep_proven, proven)
            self._kept_proven = proven if kept else None
            if not kept:
                break  # and load all the same: serving matters more than the next start

    def _proven(self) -> list[dict[str, Any]]:
        return [self._standing.to_load(each.key, each.digest) for each in self._standing.proven()]

    def _config(self, model_id: str) -> ModelServingConfig:
        """The model's configuration with what follows from its routes."""
        model = self._standing.desired.models[model_id]
        version = main_version(model.routes)
        wanted = self._standing.desired.versions.get((model_id, version or ""))
        if version is None or wanted is None:
            return model.config
        folder = self._artifact_folder / "sha256" / wanted.digest / "content"
        return model.config.model_copy(update={"model_version": version, "model_path": str(folder)})
