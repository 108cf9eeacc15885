"""Which of the tables that an agent sends an HTTP process puts in force."""

from pathlib import Path
from typing import Any

import orjson

from serving.agent_link import AgentLink
from serving.catalogue import Catalogue


def table(generation: int, **more: Any) -> bytes:
    """A table as it travels."""
    return orjson.dumps({"generation": generation, "models": {}, **more})


def test_a_snapshot_never_takes_newer_routes_back_but_the_database_does(tmp_path: Path) -> None:
    """A restarted agent would undo a rollback while the database is away; or a restored backup never count."""
    catalogue = Catalogue()
    link = AgentLink(str(tmp_path / "agent"), tmp_path / "table.json", catalogue)
    taken = []
    for generation, certain in [(3, False), (7, True), (5, False), (7, False), (8, False), (4, True), (3, False)]:
        confirmed = link.apply(table(generation, certain=certain)) is not None
        taken.append((confirmed, catalogue.generation))
    assert taken == [(True, 3), (True, 7), (False, 7), (True, 7), (True, 8), (True, 4), (False, 4)]


def test_a_table_that_does_not_say_counts(tmp_path: Path) -> None:
    """The first start after an upgrade would serve nothing by the snapshot of before."""
    catalogue = Catalogue()
    link = AgentLink(str(tmp_path / "agent"), tmp_path / "table.json", catalogue)
    assert link.apply(table(2)) is not None
    assert link.apply(b"{") is None
    assert catalogue.generation == 2
