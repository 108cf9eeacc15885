"""What tests of workers share."""

import pytest

from serving.artifacts import ArtifactStore
from tests.models import Zoo, registered
from tests.worker_client import Digest


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """One artifact store for all workers of a file, as in service."""
    return ArtifactStore(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def digest(zoo: Zoo, store: ArtifactStore) -> Digest:
    """The digest of a model of the zoo, in the store."""
    return lambda name: registered(zoo.get(name), store)
