"""Housekeeping: what is damaged is found and mended where it can be, and nothing that is used is removed."""

import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from control_plane.errors import RegistryUnreachable
from control_plane.housekeeping import discard_unused_artifacts, tidy_database, verify_kept_versions
from control_plane.services import Services, wire
from control_plane.settings import Settings
from control_plane.storage.installation import read_installation
from control_plane.storage.setup import create_database
from serving.artifacts import ArtifactStore
from serving.store import Database, open_database
from tests.fakes import FakeRegistry


@pytest.fixture
def registry() -> FakeRegistry:
    registry = FakeRegistry()
    registry.register("flights")
    registry.register("flights")
    return registry


@pytest.fixture
def services(database: Database, registry: FakeRegistry, tmp_path: Path) -> Services:
    services = wire(Settings(data_folder=tmp_path), database, registry, ArtifactStore(tmp_path / "artifacts"))
    services.versions.prepare("flights", "1")
    services.versions.prepare("flights", "2")
    return services


def damage(services: Services, version: str) -> None:
    kept = services.versions.prepare("flights", version)
    (kept.folder / "model.pkl").chmod(0o644)
    (kept.folder / "model.pkl").write_bytes(b"rotten")


def test_whole_restored_and_damaged_are_told_apart(services: Services, registry: FakeRegistry) -> None:
    """Before the bad day, not on it, one must learn that the way back is broken."""
    assert [each.state for each in verify_kept_versions(services)] == ["whole", "whole"]
    damage(services, "1")
    damage(services, "2")
    registry.delete_files("flights", "2")
    states = {each.version: each for each in verify_kept_versions(services)}
    assert states["1"].state == "restored"
    assert states["2"].state == "damaged"
    assert "'model.pkl' were changed" in states["2"].detail
    assert "Register it again" in states["2"].detail
    assert [each.state for each in verify_kept_versions(services)] == ["whole", "damaged"]


def test_only_what_is_unused_and_old_is_removed(services: Services) -> None:
    """A copy that was just made is about to be recorded."""
    with services.database.reading() as session:
        owner = read_installation(session)
    orphan = services.artifacts.put(lambda folder: (folder / "a").write_text("nobody's"), owner)
    shared = services.artifacts.put(lambda folder: (folder / "a").write_text("also another's"), owner)
    services.artifacts.put(lambda folder: (folder / "a").write_text("also another's"), "another-installation")
    assert discard_unused_artifacts(services, older_than=3600) == 0
    old = time.time() - 7200
    for digest in services.artifacts.digests():
        home = services.artifacts.root / "sha256" / digest
        os.utime(home, (old, old))
    assert discard_unused_artifacts(services, older_than=3600) == 1
    assert services.artifacts.find(orphan.digest) is None
    assert services.artifacts.find(shared.digest) is not None
    assert [each.state for each in verify_kept_versions(services)] == ["whole", "whole"]


def test_a_new_database_removes_nothing_that_the_lost_one_kept(
    services: Services, registry: FakeRegistry, tmp_path: Path
) -> None:
    """After a lost database the kept models are all that is left of the way back."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    create_database(url, 5)
    old = time.time() - 7200
    for digest in services.artifacts.digests():
        os.utime(services.artifacts.root / "sha256" / digest, (old, old))
    with closing(open_database(url, 5)) as fresh:
        renewed = replace(services, database=fresh)
        assert discard_unused_artifacts(renewed, older_than=3600) == 0
    assert [each.state for each in verify_kept_versions(services)] == ["whole", "whole"]


def test_a_registry_that_is_down_is_no_damage(services: Services, registry: FakeRegistry) -> None:
    """Whole copies need nobody; a damaged one says that nobody could help."""
    registry.is_down = True
    assert [each.state for each in verify_kept_versions(services)] == ["whole", "whole"]
    damage_without_prepare(services)
    states = {each.version: each for each in verify_kept_versions(services)}
    assert states["1"].state == "damaged"
    assert RegistryUnreachable.__name__ not in states["1"].detail
    assert "does not answer" in states["1"].detail


def damage_without_prepare(services: Services) -> None:
    with services.database.reading():
        digest = services.versions.versions("flights").items[-1].digest
    assert digest
    found = services.artifacts.find(digest)
    assert found
    (found.folder / "model.pkl").chmod(0o644)
    (found.folder / "model.pkl").write_bytes(b"rotten")


def test_the_database_is_tidied(services: Services) -> None:
    """On both databases."""
    assert " in " in tidy_database(services)
