"""One contract for the fake registry and for MLflow: what stands above them is tested on the fake."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from control_plane.errors import RegistryRefused, VersionLost
from control_plane.registry import Registry
from control_plane.registry.mlflow_registry import MlflowRegistry
from tests.conftest import MlflowServer
from tests.fakes import FakeRegistry


@dataclass(frozen=True)
class World:
    """A registry with an empty model, and the person who works on it."""

    registry: Registry
    model_id: str
    register: Callable[[], str]
    delete_version: Callable[[str], None]
    delete_model: Callable[[], None]
    delete_files: Callable[[str], None]


@pytest.fixture(params=["fake", "mlflow"])
def world(request: pytest.FixtureRequest) -> World:
    """Each test runs on both."""
    if request.param == "fake":
        fake = FakeRegistry()
        return World(
            fake,
            "churn",
            lambda: fake.register("churn"),
            lambda version: fake.delete_version("churn", version),
            lambda: fake.delete_model("churn"),
            lambda version: fake.delete_files("churn", version),
        )
    from tests.mlflow_person import Person

    server: MlflowServer = request.getfixturevalue("mlflow_server")
    person = Person(server.uri, server.backend, server.artifacts)
    return World(
        MlflowRegistry(server.uri, timeout=20, retries=0),
        person.model_id,
        person.register,
        lambda version: person.client.delete_model_version(person.model_id, version),
        lambda: person.client.delete_registered_model(person.model_id),
        person.delete_files,
    )


def test_versions_are_texts_newest_first(world: World) -> None:
    """MLflow gives numbers or texts, by the store behind it; "10" must not come before "9"."""
    registered = [world.register() for _ in range(2)]
    found = world.registry.versions(world.model_id)
    assert found is not None
    assert [each.version for each in found] == list(reversed(registered)) == ["2", "1"]
    assert all(each.model_id == world.model_id and each.complete and each.run_id for each in found)
    assert found[0].created_at.utcoffset() is not None
    assert world.model_id in world.registry.models()


def test_an_unknown_model_is_none_and_has_no_aliases(world: World) -> None:
    """Unknown and empty are different answers to a user."""
    assert world.registry.versions("no-such-model") is None
    assert world.registry.versions("no/such'model\"") is None
    assert world.registry.aliases("no-such-model") == {}


def test_aliases_are_set_moved_and_deleted(world: World) -> None:
    """The projection of what serves must be able to say every change."""
    first, second = world.register(), world.register()
    world.registry.set_alias(world.model_id, "champion", first)
    world.registry.set_alias(world.model_id, "previous", first)
    world.registry.set_alias(world.model_id, "champion", second)
    assert world.registry.aliases(world.model_id) == {"champion": second, "previous": first}
    world.registry.delete_alias(world.model_id, "previous")
    world.registry.delete_alias(world.model_id, "previous")
    assert world.registry.aliases(world.model_id) == {"champion": second}


def test_an_alias_of_nothing_and_a_reserved_one_are_refused(world: World) -> None:
    """A projection that cannot be written must say so instead of seeming done."""
    version = world.register()
    with pytest.raises(RegistryRefused, match="not found"):
        world.registry.set_alias(world.model_id, "champion", "99")
    with pytest.raises(RegistryRefused, match="reserved"):
        world.registry.set_alias(world.model_id, "latest", version)


def test_deleting_a_version_takes_its_aliases(world: World) -> None:
    """That an alias vanished without anybody removing it must not surprise us."""
    version = world.register()
    world.register()
    world.registry.set_alias(world.model_id, "champion", version)
    world.delete_version(version)
    assert world.registry.aliases(world.model_id) == {}


def test_the_number_of_a_deleted_version_is_not_given_away(world: World) -> None:
    """As long as the model lives, a number means one version."""
    world.register()
    world.delete_version(world.register())
    assert world.register() == "3"


def test_a_model_that_was_deleted_and_made_again_counts_from_one(world: World) -> None:
    """Whoever trusts the number alone serves another model than was proven."""
    world.register()
    before = world.registry.versions(world.model_id)
    world.delete_model()
    assert world.registry.versions(world.model_id) is None
    world.register()
    after = world.registry.versions(world.model_id)
    assert before
    assert after
    assert before[0].version == after[0].version == "1"
    assert before[0].identity != after[0].identity


def test_tags_are_shown(world: World) -> None:
    """People look for the digest in MLflow."""
    version = world.register()
    world.registry.set_tag(world.model_id, version, "switchyard.digest", "abc")
    found = world.registry.versions(world.model_id)
    assert found
    assert found[0].tags == {"switchyard.digest": "abc"}
    with pytest.raises(RegistryRefused):
        world.registry.set_tag(world.model_id, "99", "a", "b")


def test_download_fills_the_folder_and_nothing_else(world: World, tmp_path: Path) -> None:
    """Every load through MLflow leaves a copy in the system's temporary folder, until the disk is full."""
    world.register()
    found = world.registry.versions(world.model_id)
    assert found
    room = tmp_path / "room"
    content = room / "content"
    content.mkdir(parents=True)
    world.registry.download(found[0], content)
    assert {"MLmodel", "model.pkl"} <= {path.name for path in content.iterdir()}
    assert [path.name for path in room.iterdir()] == ["content"]


def test_facts_say_author_metrics_and_size(world: World) -> None:
    """The list of versions is where people choose from."""
    world.register()
    found = world.registry.versions(world.model_id)
    assert found
    facts = world.registry.facts(found[0])
    assert not facts.lost
    assert facts.metrics
    assert facts.created_by
    assert facts.size_bytes
    assert facts.signature is not None


def test_lost_files_are_noticed(world: World, tmp_path: Path) -> None:
    """After `mlflow gc` the version still says READY, and nothing of it is left."""
    version = world.register()
    found = world.registry.versions(world.model_id)
    assert found
    world.delete_files(version)
    still = world.registry.versions(world.model_id)
    assert still
    assert world.registry.facts(still[0]).lost
    (tmp_path / "content").mkdir()
    with pytest.raises(VersionLost):
        world.registry.download(still[0], tmp_path / "content")
    assert list(tmp_path.iterdir()) == [tmp_path / "content"]
