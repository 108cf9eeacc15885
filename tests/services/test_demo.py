"""The demo's own part: which of the versions that were trained is to serve. All of it is run by tests/e2e/test_readme.py."""

import pytest

from control_plane import demo
from control_plane.errors import DemoFailed
from control_plane.settings import Settings
from tests.conftest import MlflowServer
from tests.mlflow_person import Person
from tests.processes import free_port


@pytest.fixture
def person(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Somebody with two versions."""
    person = Person(mlflow_server.uri, mlflow_server.backend, mlflow_server.artifacts)
    monkeypatch.setattr(demo, "MODEL", person.model_id)
    person.register()
    person.register()
    return person


def test_the_version_that_was_registered_serves(person: Person, mlflow_server: MlflowServer) -> None:
    """A second demo would promote what our own alias names, the first one's model, and show its figures as the new's."""
    settings = Settings(mlflow_tracking_uri=mlflow_server.uri)
    for version in ("2", "1"):
        person.client.set_registered_model_alias(person.model_id, "champion", version)
        assert demo._registered(settings, "champion") == version


def test_a_registry_that_cannot_say_stops_the_demo(person: Person, mlflow_server: MlflowServer) -> None:
    """With words, not with a traceback."""
    for uri in (mlflow_server.uri, f"http://127.0.0.1:{free_port()}"):
        with pytest.raises(DemoFailed, match="which version is challenger") as refused:
            demo._registered(Settings(mlflow_tracking_uri=uri), "challenger")
        assert uri in refused.value.detail
