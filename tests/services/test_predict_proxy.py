"""Predict and the inference protocol through the control plane: every byte as the data plane says it."""

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from control_plane.app import create_app
from control_plane.services import Services
from control_plane.storage.setup import create_database
from serving.store import open_database
from tests.processes import wait_until
from tests.services.serving_world import PlayedDataPlane, Registry, make_services, running

PREDICT = "/ml/models/flights/predict"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def data_plane() -> Iterator[PlayedDataPlane]:
    with PlayedDataPlane() as data_plane:
        yield data_plane


@pytest.fixture
def client(tmp_path: Path, data_plane: PlayedDataPlane) -> Iterator[TestClient]:
    yield from serve(tmp_path, data_plane.port)


def serve(folder: Path, port: int) -> Iterator[TestClient]:
    url = f"sqlite:///{folder / 'switchyard.db'}"
    create_database(url, 5)
    services = make_services(open_database(url, 5), Registry(), folder, data_plane_port=port, max_body_bytes=2000)
    with running(services) as client:
        yield client


def test_bytes_pass_through_unchanged_both_ways(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """Nothing is parsed on the way: not a digit, not a space, not an unknown key is touched."""
    asked = b'{ "input_data" : {"temp": 41.00000000000000000001, "caf\xc3\xa9": "\\u00e9"} }'
    data_plane.body = b'{"predictions":[{"value":1e-320}],  "x":NaN}'
    request_id = str(uuid.uuid4())
    headers = {
        **JSON, "X-Request-ID": request_id, "X-Request-Timeout": "0.25", "traceparent": "00-1-2-01", "X-Own": "no",
    }  # fmt: skip
    answer = client.post(PREDICT, content=asked, headers=headers)
    ((method, path, sent, body),) = data_plane.asked
    assert (answer.status_code, answer.content, body) == (200, data_plane.body, asked)
    assert (method, path) == ("POST", PREDICT)
    assert (sent["x-request-id"], sent["x-request-timeout"], sent["traceparent"]) == (request_id, "0.25", "00-1-2-01")
    assert ("x-own" in sent, sent["accept-encoding"]) == (False, "identity")
    assert answer.headers["content-type"] == "application/json"


def test_a_trace_is_passed_on_and_back(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """Whoever uses this address could not follow a request any further than to it."""
    asked, answered = (f"00-{'a' * 32}-{span * 16}-01" for span in "bc")
    data_plane.headers["Traceparent"] = answered
    answer = client.post(PREDICT, json={}, headers={"traceparent": asked, "tracestate": "vendor=1"})
    ((_, _, sent, _),) = data_plane.asked
    assert (sent["traceparent"], sent["tracestate"], answer.headers["traceparent"]) == (asked, "vendor=1", answered)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503, 504])
def test_every_answer_is_the_data_planes_own(client: TestClient, data_plane: PlayedDataPlane, status: int) -> None:
    """A client must not have to care which address it uses."""
    data_plane.status, data_plane.body = status, b'{"error":"SomethingNew","detail":"as it is"}'
    data_plane.headers |= {"Retry-After": "17", "X-Request-Id": "its-own", "Server": "secret"}
    answer = client.post(PREDICT, content=b"{", headers=JSON)
    assert (answer.status_code, answer.content) == (status, data_plane.body)
    assert answer.headers["retry-after"] == "17"
    assert answer.headers.get_list("x-request-id") == ["its-own"]
    assert "server" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("HEAD", "/v2/health/ready"),
        ("GET", "/v2/models/flights"),
        ("GET", "/v2/models/flights/ready"),
        ("GET", "/v2/models/caf%C3%A9/versions/3"),
        ("GET", "/v2/models/flights/versions/3/ready?x=%20y&z"),
        ("POST", "/v2/models/flights/infer"),
        ("POST", "/v2/models/flights/versions/3/infer"),
        ("GET", "/v2/models/flights/what/is/this"),
        ("DELETE", "/v2/models/flights"),
    ],
)
def test_all_of_the_protocol_is_passed_with_its_path_as_it_was_sent(
    client: TestClient, data_plane: PlayedDataPlane, method: str, path: str
) -> None:
    """What the data plane knows, or does not, is for it to say."""
    answer = client.request(method, path, headers=JSON if method in ("POST", "DELETE") else {})
    assert answer.status_code == 200
    assert data_plane.asked[0][:2] == (method, path)


def test_a_data_plane_that_is_away_is_503_with_a_way_out(tmp_path: Path) -> None:
    """It is told apart from a model that is not ready, and it is worth another try."""
    with PlayedDataPlane() as gone:
        port = gone.port
    for client in serve(tmp_path, port):
        for answer in (client.post(PREDICT, json={}), client.get("/v2/health/live")):
            assert (answer.status_code, answer.json()["error"]) == (503, "DataPlaneUnreachable")
            assert int(answer.headers["retry-after"]) > 0
            assert "switchyard doctor" in answer.json()["detail"]


def test_a_data_plane_that_restarts_costs_no_request(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """A pooled connection that was closed under us is opened anew, without the caller noticing."""
    for _ in range(3):
        data_plane.headers["Connection"] = "close"
        assert client.post(PREDICT, json={}).status_code == 200


def test_a_body_over_the_limit_is_413_and_goes_no_further(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """One client must not fill the memory of both planes."""
    answer = client.post(PREDICT, content=b" " * 2001, headers=JSON)
    assert (answer.status_code, answer.json()["error"], answer.json()["limit_bytes"]) == (413, "BodyTooLarge", 2000)
    unannounced = client.post(PREDICT, content=iter([b" " * 1500, b" " * 1500]), headers=JSON)
    assert (unannounced.status_code, unannounced.headers["connection"]) == (413, "close")
    assert client.post("/ml/models/flights/promote", content=b" " * 3000, headers=JSON).status_code == 413
    assert data_plane.asked == []
    assert client.post(PREDICT, content=b" " * 2000, headers=JSON).status_code == 200


def test_a_body_that_waits_to_be_asked_for_is_never_asked_for(client: TestClient) -> None:
    """A careful client asks first (Expect: 100-continue), to be spared the sending."""

    def announced() -> Iterator[bytes]:
        yield pytest.fail("it was read")

    headers = {**JSON, "Content-Length": "2001", "Expect": "100-continue"}
    assert client.post(PREDICT, content=announced(), headers=headers).status_code == 413


@pytest.mark.parametrize("how", ["announced", "chunked"])
def test_a_client_that_sends_far_too_much_can_read_why(tmp_path: Path, how: str) -> None:
    """It would see a broken connection, and try again and again."""
    chunk, chunks = b" " * 1_000_000, 20
    content: Any = chunk * chunks if how == "announced" else (chunk for _ in range(chunks))
    url = f"sqlite:///{tmp_path / 'switchyard.db'}"
    create_database(url, 5)
    services = make_services(open_database(url, 5), Registry(), tmp_path, max_body_bytes=4_000_000)
    with listening(services) as port, closing(HTTPConnection("127.0.0.1", port, timeout=30)) as plain:
        # As most libraries do it, this one sends all before it reads.
        headers = JSON if how == "announced" else {**JSON, "Transfer-Encoding": "chunked"}
        plain.request("POST", PREDICT, content, headers, encode_chunked=how == "chunked")
        answer = plain.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]) == (413, "BodyTooLarge")


@contextmanager
def listening(services: Services) -> Iterator[int]:
    """The application on a real socket, as `python -m control_plane` has it; its port."""
    server = uvicorn.Server(uvicorn.Config(create_app(services), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server to listen", 30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


def test_what_is_not_json_is_415_and_goes_no_further(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """A form on any web page can post text; it cannot claim to be JSON."""
    assert client.post(PREDICT, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post(PREDICT, json={}, headers={"Host": "evil.example"}).status_code == 403
    assert data_plane.asked == []


def test_many_ask_at_once(client: TestClient, data_plane: PlayedDataPlane) -> None:
    """Answers must not be mixed up between callers."""
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post(PREDICT, json={"n": 1}).status_code))
        for _ in range(20)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert answers == [200] * 20
    assert len({sent["x-request-id"] for _, _, sent, _ in data_plane.asked}) == 20


def documented(client: TestClient) -> dict[str, dict[str, Any]]:
    paths = client.get("/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}": each for path, methods in paths.items() for method, each in methods.items()}


def test_predict_is_documented_with_schemas_examples_and_every_status(client: TestClient) -> None:
    """People copy from the documentation page, and tools test against it."""
    described = documented(client)
    predict = described["POST /ml/models/{model_id}/predict"]
    every = {"200", "400", "403", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert set(predict["responses"]) == every
    assert "DataPlaneUnreachable" in predict["responses"]["503"]["description"]
    schema = predict["requestBody"]["content"]["application/json"]["schema"]
    assert schema["examples"][0]["input_data"] == {"temp": 41.0, "carrier": "UA"}
    assert schema["required"] == ["input_data"]
    answer = predict["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert answer.endswith("/InferenceResponse")
    assert {parameter["name"].lower() for parameter in predict["parameters"]} == {"model_id", "x-request-timeout"}
    assert every == set(described["POST /v2/models/{model_id}/versions/{version}/infer"]["responses"])


def test_every_operation_documents_what_can_become_of_it(client: TestClient) -> None:
    """An answer that is not in the description breaks the clients that were generated from it."""
    for name, operation in documented(client).items():
        found = set(operation["responses"])
        assert {"403", "500"} <= found, name
        if not name.startswith("GET"):
            assert {"400", "408", "413", "415", "422"} <= found, name
        if operation.get("parameters"):
            assert "422" in found, name
        errors = [each for status, each in operation["responses"].items() if status >= "400"]
        shapes = {each["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1] for each in errors}
        assert shapes <= {"ErrorBody", "Readiness"}, name
        assert operation["summary"], name


def test_a_refused_method_names_all_that_a_path_knows(client: TestClient) -> None:
    """Two methods of one path are two routes to the framework; a client asks for the path."""
    answer = client.request("OPTIONS", "/ml/models/flights/config")
    assert (answer.status_code, answer.headers["allow"], answer.json()["allowed"]) == (405, "GET, PUT", ["GET", "PUT"])
    for method in ("TRACE", "QUERY"):
        assert client.request(method, "/ml/models").status_code == 405
