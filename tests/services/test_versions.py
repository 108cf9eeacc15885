"""VersionManager: listing, resolving, keeping and projecting, on a fake registry and both databases."""

from collections.abc import Callable
from pathlib import Path

import pytest

from control_plane.errors import (
    AliasNotFound,
    InvalidVersionReference,
    RegistryUnreachable,
    VersionLost,
    VersionNotFound,
    VersionReplaced,
)
from control_plane.registry import AliasMove, VersionManager, VersionState
from control_plane.storage.aliases import pending_aliases, want_aliases
from control_plane.storage.leases import take_lease
from control_plane.storage.routes import lease_name, write_routes
from serving.artifacts import ArtifactStore
from serving.errors import ArtifactDamaged, ModelNotFound
from serving.routing import Route
from serving.store import Database
from tests.fakes import FakeRegistry


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def manager(database: Database, registry: FakeRegistry, artifacts: ArtifactStore) -> VersionManager:
    return VersionManager(database, registry, artifacts)


@pytest.fixture
def route(database: Database) -> Callable[..., None]:
    """Writes the routes of `flights`, with the aliases they bring."""

    def write(*routes: Route, **aliases: str | None) -> None:
        with database.writing() as session:
            lease = take_lease(session, lease_name("flights"), "test", 60)
            write_routes(session, lease, "flights", routes, reason="test", aliases=aliases)

    return write


def states(manager: VersionManager) -> dict[str, VersionState]:
    return {each.version: each.state for each in manager.versions("flights").items}


def damage(artifacts: ArtifactStore, digest: str) -> None:
    found = artifacts.find(digest)
    assert found
    (found.folder / "model.pkl").chmod(0o644)
    (found.folder / "model.pkl").write_bytes(b"rotten")


def test_a_version_survives_its_deletion_in_the_registry(
    manager: VersionManager, registry: FakeRegistry, artifacts: ArtifactStore
) -> None:
    """The way back must not depend on nobody tidying up in MLflow."""
    version = registry.register("flights")
    kept = manager.prepare("flights", version)
    registry.delete_files("flights", version)
    assert manager.prepare("flights", version) == kept
    registry.delete_version("flights", version)
    assert manager.prepare("flights", version) == kept
    assert artifacts.verify(kept.digest).folder == kept.folder
    (listed,) = manager.versions("flights").items
    assert (listed.state, listed.digest, listed.signature) == (VersionState.REMOVED, kept.digest, {"inputs": []})
    assert listed.metrics == {"brier": 0.15}
    assert manager.resolve("flights", version) == version
    registry.delete_model("flights")
    assert states(manager) == {version: VersionState.REMOVED}
    registry.is_down = True
    assert manager.prepare("flights", version) == kept


def test_each_state_is_told(manager: VersionManager, registry: FakeRegistry, route: Callable[..., None]) -> None:
    """What a version is good for is the first thing to know about it."""
    for _ in range(4):
        registry.register("flights")
    manager.prepare("flights", "2")
    manager.prepare("flights", "3")
    registry.delete_files("flights", "4")
    route(Route("3", 1.0), champion="3")
    assert states(manager) == {
        "4": VersionState.LOST,
        "3": VersionState.SERVING,
        "2": VersionState.KEPT,
        "1": VersionState.REGISTERED,
    }


def test_a_model_made_again_does_not_pass_for_the_one_that_was_proven(
    manager: VersionManager, registry: FakeRegistry
) -> None:
    """The number is the same, the model is another."""
    manager.prepare("flights", registry.register("flights"))
    registry.delete_model("flights")
    assert registry.register("flights") == "1"
    assert states(manager) == {"1": VersionState.REPLACED}
    with pytest.raises(VersionReplaced, match="Register it once more"):
        manager.prepare("flights", "1")


def test_the_digest_is_tagged_for_people(manager: VersionManager, registry: FakeRegistry) -> None:
    """Whoever looks at MLflow sees what exactly was proven."""
    kept = manager.prepare("flights", registry.register("flights"))
    (listed,) = manager.versions("flights").items
    assert listed.tags == {"switchyard.digest": kept.digest}


def test_a_damaged_copy_is_fetched_again_if_the_registry_has_the_same_bytes(
    manager: VersionManager, registry: FakeRegistry, artifacts: ArtifactStore
) -> None:
    """A bad sector must not take the way back."""
    kept = manager.prepare("flights", registry.register("flights"))
    damage(artifacts, kept.digest)
    assert manager.prepare("flights", "1") == kept
    artifacts.verify(kept.digest)
    artifacts.discard(kept.digest)
    assert manager.prepare("flights", "1") == kept


def test_other_bytes_under_the_same_number_are_refused(
    manager: VersionManager, registry: FakeRegistry, artifacts: ArtifactStore
) -> None:
    """Files changed in the registry after they were proven are not what was proven."""
    kept = manager.prepare("flights", registry.register("flights"))
    damage(artifacts, kept.digest)
    found = registry.versions("flights")
    assert found
    registry._files[found[0].identity]["model.pkl"] = b"changed behind our back"
    with pytest.raises(ArtifactDamaged, match="delivers other bytes"):
        manager.prepare("flights", "1")


def test_a_damaged_copy_without_a_registry_is_an_error_not_a_model(
    manager: VersionManager, registry: FakeRegistry, artifacts: ArtifactStore
) -> None:
    """Never load what is not whole, not even when there is nothing else."""
    kept = manager.prepare("flights", registry.register("flights"))
    damage(artifacts, kept.digest)
    registry.is_down = True
    with pytest.raises(RegistryUnreachable):
        manager.prepare("flights", "1")


def test_a_version_whose_files_are_gone_cannot_be_prepared(manager: VersionManager, registry: FakeRegistry) -> None:
    """The registry says READY; the message must say what to do."""
    registry.register("flights")
    registry.delete_files("flights", "1")
    with pytest.raises(VersionLost, match="Register it again"):
        manager.prepare("flights", "1")
    assert states(manager) == {"1": VersionState.LOST}


def test_numbers_and_aliases_resolve(manager: VersionManager, registry: FakeRegistry) -> None:
    """People say champion, machines say 3."""
    for _ in range(3):
        registry.register("flights")
    registry.set_alias("flights", "champion", "2")
    assert manager.resolve("flights", "champion") == "2"
    assert manager.resolve("flights", " 3 ") == "3"
    assert manager.resolve("flights", "003") == "3"


def test_what_we_route_is_the_champion_whatever_mlflow_says(
    manager: VersionManager, registry: FakeRegistry, route: Callable[..., None]
) -> None:
    """An alias can be moved by anybody; traffic cannot."""
    for number in ("1", "2", "3"):
        registry.register("flights")
        manager.prepare("flights", number)
    route(Route("2", 1.0), champion="2", previous="1")
    registry.set_alias("flights", "champion", "3")
    assert manager.resolve("flights", "champion") == "2"
    assert manager.resolve("flights", "previous") == "1"
    assert {each.version: each.aliases for each in manager.versions("flights").items} == {
        "3": [],
        "2": ["champion"],
        "1": ["previous"],
    }
    (summary,) = manager.models().items
    assert (summary.version, summary.aliases) == ("2", {"champion": "2", "previous": "1"})


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("9", VersionNotFound, "Known versions: 1, 2"),
        ("challenger", AliasNotFound, "Known aliases: champion"),
        ("", InvalidVersionReference, "neither a version number nor an alias"),
        ("3; DROP TABLE", InvalidVersionReference, "neither"),
        ("-1", AliasNotFound, "champion"),
    ],
)
def test_what_does_not_resolve_names_what_would(
    manager: VersionManager, registry: FakeRegistry, reference: str, error: type[Exception], says: str
) -> None:
    """At three in the morning a typo must cost seconds."""
    registry.register("flights")
    registry.register("flights")
    registry.set_alias("flights", "champion", "2")
    with pytest.raises(error, match=says):
        manager.resolve("flights", reference)


def test_an_unknown_model_names_the_known_ones(manager: VersionManager, registry: FakeRegistry) -> None:
    """The likely mistake is a typo in the name."""
    registry.register("flights")
    for ask in (
        lambda: manager.versions("fligths"),
        lambda: manager.resolve("fligths", "champion"),
        lambda: manager.resolve("fligths", "1"),
        lambda: manager.prepare("fligths", "1"),
    ):
        with pytest.raises(ModelNotFound, match="Known models: flights"):
            ask()


def test_with_the_registry_down_what_we_keep_is_still_listed(
    manager: VersionManager, registry: FakeRegistry, route: Callable[..., None]
) -> None:
    """What serves, and what can be rolled back to, must be visible exactly when things break."""
    registry.register("flights")
    registry.register("churn")
    manager.prepare("flights", "1")
    route(Route("1", 1.0), champion="1")
    registry.is_down = True
    listing = manager.models()
    assert [(each.model_id, each.version) for each in listing.items] == [("flights", "1")]
    assert "does not answer" in listing.unavailable["registry"]
    versions = manager.versions("flights")
    assert [(each.version, each.state) for each in versions.items] == [("1", VersionState.SERVING)]
    assert versions.unavailable
    assert manager.resolve("flights", "champion") == "1"
    with pytest.raises(RegistryUnreachable):
        manager.versions("churn")


def test_pages_of_versions_are_complete_and_do_not_overlap(manager: VersionManager, registry: FakeRegistry) -> None:
    """A model retrained nightly has hundreds of versions."""
    for _ in range(7):
        registry.register("flights")
    manager.prepare("flights", "2")
    registry.delete_version("flights", "2")
    seen, before = [], None
    while True:
        page = manager.versions("flights", limit=3, before=before)
        seen += [each.version for each in page.items]
        before = page.next
        if before is None:
            break
    assert seen == ["7", "6", "5", "4", "3", "2", "1"]


def test_aliases_are_projected_and_stay_so(
    manager: VersionManager, registry: FakeRegistry, database: Database, route: Callable[..., None]
) -> None:
    """MLflow must say what serves, whoever reads it there."""
    for number in ("1", "2"):
        registry.register("flights")
        manager.prepare("flights", number)
    registry.set_alias("flights", "challenger", "2")
    route(Route("2", 1.0), champion="2", previous="1", challenger=None)
    with pytest.raises(AliasNotFound, match="Known aliases: champion, previous"):
        manager.resolve("flights", "challenger")  # ours to remove, though MLflow still shows it
    assert manager.models().items[0].aliases == {"champion": "2", "previous": "1"}
    assert manager.project_aliases() == 3
    assert registry.aliases("flights") == {"champion": "2", "previous": "1"}
    assert manager.project_aliases() == 0
    assert manager.alias_moves() == []


def test_a_registry_that_is_down_delays_the_projection_and_loses_nothing(
    manager: VersionManager, registry: FakeRegistry, route: Callable[..., None]
) -> None:
    """A rollback must not wait for MLflow, and MLflow must learn of it all the same."""
    registry.register("flights")
    manager.prepare("flights", "1")
    registry.is_down = True
    route(Route("1", 1.0), champion="1")
    with pytest.raises(RegistryUnreachable):
        manager.project_aliases()
    registry.is_down = False
    assert manager.project_aliases() == 1
    assert registry.aliases("flights") == {"champion": "1"}


def test_an_alias_that_cannot_be_written_stays_pending_with_its_reason(
    manager: VersionManager, registry: FakeRegistry, database: Database
) -> None:
    """One alias of a deleted version must not hold up the others, nor be forgotten."""
    registry.register("flights")
    with database.writing() as session:
        want_aliases(session, "flights", {"previous": "99", "champion": "1"})
    assert manager.project_aliases() == 1
    with database.reading() as session:
        (row,) = pending_aliases(session)
    assert (row.alias, row.attempts) == ("previous", 1)
    assert "not found" in (row.problem or "")


def test_only_a_change_away_from_what_we_wrote_is_a_persons_move(
    manager: VersionManager, registry: FakeRegistry, route: Callable[..., None]
) -> None:
    """An alarm for our own pending writes would cry wolf at every promotion."""
    for number in ("1", "2"):
        registry.register("flights")
        manager.prepare("flights", number)
    registry.set_alias("flights", "champion", "1")
    route(Route("2", 1.0), champion="2")
    assert manager.alias_moves() == []  # ours is pending: MLflow is simply behind
    manager.project_aliases()
    assert manager.alias_moves() == []
    registry.set_alias("flights", "champion", "1")
    assert manager.alias_moves() == [AliasMove("flights", "champion", ours="2", theirs="1")]
    registry.delete_alias("flights", "champion")
    assert manager.alias_moves() == [AliasMove("flights", "champion", ours="2", theirs=None)]


def test_a_write_that_was_overtaken_is_made_good(
    manager: VersionManager, registry: FakeRegistry, database: Database
) -> None:
    """The duty and housekeeping project at the same time: the slower one's old value must not stay in MLflow."""
    registry.register("flights")
    registry.register("flights")
    set_alias = registry.set_alias

    def overtaken(model_id: str, alias: str, version: str) -> None:
        registry.set_alias = set_alias  # type: ignore[method-assign]
        with database.writing() as session:
            want_aliases(session, "flights", {"champion": "2"})
        assert manager.project_aliases() == 1
        set_alias(model_id, alias, version)

    with database.writing() as session:
        want_aliases(session, "flights", {"champion": "1"})
    registry.set_alias = overtaken  # type: ignore[method-assign]
    manager.project_aliases()
    assert manager.alias_moves() == []  # nobody moved anything
    manager.project_aliases()
    assert registry.aliases("flights") == {"champion": "2"}
