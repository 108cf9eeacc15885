"""The control plane's HTTP face: answers, errors in one shape, and no way in for a web page."""

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from structlog.testing import capture_logs

from control_plane import errors as ours
from control_plane.api.errors import STATUS, status_of
from control_plane.api.guard import why_refused
from control_plane.app import create_app
from control_plane.services import Services, wire
from control_plane.settings import Settings
from control_plane.storage.aliases import want_aliases
from control_plane.storage.setup import create_database
from serving import errors as shared
from serving.answers import STATUS_OF
from serving.artifacts import ArtifactStore
from serving.errors import SwitchyardError
from serving.store import open_database
from tests.fakes import FakeRegistry
from tests.processes import wait_until

HERE = "http://127.0.0.1:8080"


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def services(tmp_path: Path, registry: FakeRegistry) -> Services:
    settings = Settings(data_folder=tmp_path, database_timeout=0.3, projection_interval=0.1)
    create_database(settings.resolved_database_url, 5)
    database = open_database(settings.resolved_database_url, settings.database_timeout)
    artifacts = ArtifactStore(settings.resolved_artifact_folder)
    return wire(settings, database, registry, artifacts)


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    with TestClient(create_app(services), base_url=HERE, raise_server_exceptions=False) as running:
        yield running


def test_models_and_versions_are_listed(client: TestClient, registry: FakeRegistry) -> None:
    """The first thing anybody asks."""
    registry.register("flights")
    registry.register("flights")
    registry.set_alias("flights", "champion", "2")
    assert client.get("/ml/models").json() == {
        "items": [
            {"model_id": "flights", "version": None, "status": "unserved", "routes": [], "aliases": {"champion": "2"}}
        ],
        "next": None,
        "unavailable": {},
    }
    listed = client.get("/ml/models/flights/versions").json()
    assert [(each["version"], each["aliases"], each["state"]) for each in listed["items"]] == [
        ("2", ["champion"], "registered"),
        ("1", [], "registered"),
    ]
    assert {"tags", "metrics", "signature", "size_bytes", "digest", "created_at", "created_by"} <= set(
        listed["items"][0]
    )
    assert listed["items"][0]["created_at"].endswith("Z")


def test_pages_follow_next(client: TestClient, registry: FakeRegistry) -> None:
    """Lists say where they go on."""
    for _ in range(3):
        registry.register("flights")
    first = client.get("/ml/models/flights/versions?limit=2").json()
    rest = client.get("/ml/models/flights/versions", params={"limit": 2, "before": first["next"]}).json()
    assert [each["version"] for each in first["items"] + rest["items"]] == ["3", "2", "1"]
    assert rest["next"] is None


def test_an_unknown_model_is_404_and_names_the_known(client: TestClient, registry: FakeRegistry) -> None:
    """The shape of every error: name, detail, facts."""
    registry.register("flights")
    answer = client.get("/ml/models/fligths/versions")
    assert answer.status_code == 404
    assert answer.json() == {
        "error": "ModelNotFound",
        "detail": "There is no model 'fligths'. Known models: flights.",
        "model_id": "fligths",
        "known": ["flights"],
    }


@pytest.mark.parametrize(
    ("query", "path"), [("limit=0", "limit"), ("limit=many", "limit"), ("before=-1", "before"), ("before=x", "before")]
)
def test_wrong_parameters_name_the_field(client: TestClient, query: str, path: str) -> None:
    """422 with which field, what is wrong and what would be right."""
    answer = client.get(f"/ml/models/flights/versions?{query}")
    assert answer.status_code == 422
    body = answer.json()
    assert body["error"] == "ValidationFailed"
    (field,) = body["fields"]
    assert field["path"] == path
    assert field["problem"]
    assert field["expected"]


def test_the_registry_down_degrades_and_says_so(client: TestClient, registry: FakeRegistry) -> None:
    """What serves goes on serving; the control plane must not be taken out of service for MLflow's sake."""
    registry.is_down = True
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert client.get("/ml/models").json()["unavailable"]["registry"]
    answer = client.get("/ml/models/flights/versions")
    assert (answer.status_code, answer.json()["error"]) == (503, "RegistryUnreachable")
    assert int(answer.headers["retry-after"]) > 0
    registry.is_down = False
    assert client.get("/health/ready").json()["status"] == "ready"


def test_each_trouble_of_the_database_is_503_with_a_way_out_and_heals(
    client: TestClient, services: Services, tmp_path: Path
) -> None:
    """A backup being restored must not need a restart of ours afterwards."""
    file, aside = tmp_path / "switchyard.db", tmp_path / "aside.db"
    services.database.close()
    file.rename(aside)
    for left_over in ("-wal", "-shm"):
        Path(f"{file}{left_over}").unlink(missing_ok=True)
    _unready(client, "DatabaseMissing", "does not exist")
    assert not file.exists()
    file.touch()
    _unready(client, "DatabaseEmpty", "holds no tables of ours")
    file.write_text("not a database at all " * 100)
    _unready(client, "DatabaseDamaged", "file is not a database")
    file.unlink()
    aside.rename(file)
    assert client.get("/health/ready").status_code == 200
    assert client.get("/ml/models").status_code == 200


def _unready(client: TestClient, error: str, says: str) -> None:
    answer = client.get("/ml/models")
    assert (answer.status_code, answer.json()["error"]) == (503, error)
    assert says in answer.json()["detail"]
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
    assert client.get("/health/live").status_code == 200
    assert "switchyard_database_up 0.0" in client.get("/metrics").text


def test_a_newer_schema_is_refused_in_the_middle_of_things(client: TestClient, services: Services) -> None:
    """Another host upgraded the shared database: stop, say so, change nothing."""
    with services.database.writing() as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    answer = client.get("/ml/models")  # without a health check before it
    assert (answer.status_code, answer.json()["error"]) == (503, "SchemaNewer")
    assert client.get("/health/ready").status_code == 503


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::1"])
def test_foreign_hosts_are_refused(client: TestClient, host: str) -> None:
    """DNS rebinding: a page under its own name resolves it to 127.0.0.1 and reads everything."""
    answer = client.get("/ml/models", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]) == (403, "ForeignHost")
    assert "SWITCHYARD_ALLOWED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_local_hosts_are_answered(client: TestClient, host: str) -> None:
    """The defaults must work without any setting."""
    assert client.get("/ml/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1.evil.example", "http://["],
)
def test_foreign_origins_are_refused(client: TestClient, origin: str) -> None:
    """Another page on this very machine is foreign too: its port differs."""
    answer = client.get("/ml/models", headers={"Origin": origin})
    assert (answer.status_code, answer.json()["error"]) == (403, "ForeignOrigin")


def test_own_and_allowed_origins_pass(services: Services) -> None:
    """Behind a proxy with a name of its own it must work by setting that name."""
    settings = services.settings.model_copy(
        update={"allowed_hosts": ["ml.example"], "allowed_origins": ["https://ml.example/"]}
    )
    with TestClient(create_app(replace(services, settings=settings)), base_url=HERE) as client:
        assert client.get("/ml/models", headers={"Origin": HERE}).status_code == 200
        named = {"Host": "ml.example", "Origin": "https://ml.example"}
        assert client.get("/ml/models", headers=named).status_code == 200


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_writes_that_are_not_json_are_refused(client: TestClient, method: str, content_type: str | None) -> None:
    """A form on any page can post here without asking; it cannot claim to be JSON."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = client.request(method, "/ml/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (415, "WrongContentType")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.flights+json"])
def test_writes_in_any_kind_of_json_are_read(client: TestClient, content_type: str) -> None:
    """The data plane takes them, and both addresses are one API."""
    answer = client.post("/ml/models", headers={"Content-Type": content_type})
    assert answer.status_code == 405


def test_unknown_paths_and_methods_have_the_same_shape(client: TestClient) -> None:
    """A client has one way to read errors."""
    missing = client.get("/nowhere")
    assert (missing.status_code, missing.json()["error"]) == (404, "PathNotFound")
    assert "/ml/models" in missing.json()["known"]
    answer = client.put("/ml/models", json={})
    assert (answer.status_code, answer.json()["error"]) == (405, "MethodNotAllowed")
    assert answer.headers["allow"]


def test_an_unexpected_failure_is_told_without_a_stack_trace_and_logged_with_the_id(
    client: TestClient, registry: FakeRegistry
) -> None:
    """The caller gets an id, the log the traceback; never the other way round."""

    def broken() -> dict[str, dict[str, str]]:
        raise ZeroDivisionError("secret inside")

    registry.models = broken  # type: ignore[method-assign]
    with capture_logs() as logged:
        answer = client.get("/ml/models")
    assert (answer.status_code, answer.json()["error"]) == (500, "InternalError")
    assert "secret inside" not in answer.text
    assert uuid.UUID(answer.headers["x-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert any(entry["event"] == "unexpected error" and entry["exc_info"] for entry in logged)


def test_a_callers_request_id_is_kept_if_it_is_one(client: TestClient) -> None:
    """One id through all systems; but nobody writes into our log through it."""
    given = str(uuid.uuid4())
    assert client.get("/health/live", headers={"X-Request-ID": given}).headers["x-request-id"] == given
    forged = client.get("/health/live", headers={"X-Request-ID": 'x", "level": "error'}).headers["x-request-id"]
    assert uuid.UUID(forged)


def test_metrics_count_by_template_and_show_pending_work(
    client: TestClient, services: Services, registry: FakeRegistry
) -> None:
    """A time series for each path would kill the Prometheus that watches us."""
    registry.is_down = True
    with services.database.writing() as session:
        want_aliases(session, "flights", {"champion": "1"})
    for name in ("a", "b", "c"):
        client.get(f"/ml/models/{name}/versions")
    figures = client.get("/metrics").text
    route = 'method="GET",route="/ml/models/{model_id}/versions",status="503"'
    assert f"switchyard_control_plane_requests_total{{{route}}} 3.0" in figures
    assert "switchyard_alias_projections_pending 1.0" in figures
    assert "switchyard_database_up 1.0" in figures


def test_the_control_plane_projects_aliases_by_itself(
    client: TestClient, services: Services, registry: FakeRegistry
) -> None:
    """Nobody should have to run anything for MLflow to show what serves."""
    registry.is_down = True
    registry.register("flights")
    with services.database.writing() as session:
        want_aliases(session, "flights", {"champion": "1"})
    client.get("/ml/models")
    registry.is_down = False
    wait_until(lambda: registry.aliases("flights") == {"champion": "1"}, "the alias to appear", 30)


def test_openapi_has_examples_and_documents_errors(client: TestClient) -> None:
    """People copy from the documentation page."""
    described = client.get("/openapi.json").json()
    versions = described["paths"]["/ml/models/{model_id}/versions"]["get"]
    assert {"200", "404", "422", "503"} <= set(versions["responses"])
    assert "ModelNotFound" in versions["responses"]["404"]["description"]
    assert described["components"]["schemas"]["VersionBody"]["examples"][0]["version"] == "3"
    assert all(operation.get("summary") for path in described["paths"].values() for operation in path.values())


def test_the_documentation_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    """It must work where there is no internet."""
    page = client.get("/docs").text
    assert "static-offline-docs" in page
    assert "http://" not in page.replace(HERE, "")
    assert "https://" not in page
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"


def _leaves(kind: type[SwitchyardError]) -> set[type[SwitchyardError]]:
    below = {leaf for child in kind.__subclasses__() for leaf in _leaves(child)}
    return below or {kind}


def test_every_error_has_a_status_and_stands_in_a_drawn_tree() -> None:
    """An error nobody decided a status for would become a 500 at night."""
    drawn = (ours.__doc__ or "") + (shared.__doc__ or "")
    for leaf in _leaves(SwitchyardError):
        if leaf.__module__.startswith(("control_plane", "serving")):
            assert any(parent in STATUS for parent in leaf.__mro__), leaf
            assert f"─ {leaf.__name__}\n" in drawn, leaf
    assert status_of(shared.SchemaOlder("d", "1", "2")) == 503


def test_both_planes_answer_an_error_with_the_same_status() -> None:
    """Predict goes through either address; a client must not have to care which."""
    assert {kind: STATUS[kind] for kind in STATUS_OF} == STATUS_OF


def test_errors_survive_being_sent_between_processes() -> None:
    """A worker's error must arrive as what it was."""
    import pickle

    sent = shared.ModelNotFound("flights", ["churn"])
    received = pickle.loads(pickle.dumps(sent))
    assert (type(received), received.body()) == (shared.ModelNotFound, sent.body())
    assert json.dumps(received.body())


def test_foreign_websockets_are_refused(client: TestClient) -> None:
    """Browsers open a WebSocket to any site without asking it first."""
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/live", headers=headers):
            pass
        assert caught.value.code == 1008


def test_the_guard_answers_nothing_before_it_has_looked() -> None:
    """The order matters: host, then origin, then content type."""
    from starlette.datastructures import Headers

    everything_wrong = Headers({"host": "evil", "origin": "http://evil2", "content-type": "text/plain"})
    assert isinstance(why_refused("POST", everything_wrong, {"localhost"}, set()), ours.ForeignHost)


def test_it_lives_while_every_thread_waits_for_the_registry(client: TestClient, registry: FakeRegistry) -> None:
    """A registry that hangs must not get the control plane killed by whoever probes its liveness."""
    release, waiting = threading.Event(), threading.Semaphore(0)

    def hang() -> dict[str, dict[str, str]]:
        waiting.release()
        release.wait(60)
        return {}

    registry.models = hang  # type: ignore[method-assign]
    with ThreadPoolExecutor(60) as callers:
        answers = [callers.submit(client.get, "/ml/models") for _ in range(60)]
        try:
            for _ in range(40):  # as many threads as there are
                assert waiting.acquire(timeout=30)
            assert callers_live(client).result(10).status_code == 200
        finally:
            release.set()
        assert {each.result(60).status_code for each in answers} == {200}


def callers_live(client: TestClient) -> "Future[httpx.Response]":
    """A probe in a thread of its own, so that one that hangs fails the test instead of hanging it."""
    return ThreadPoolExecutor(1).submit(client.get, "/health/live")
