"""What a running data plane answers. One server for all tests of this file."""

import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.data_plane import DataPlane, eventually

READ_PATHS = ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"]
PREDICT = "/ml/models/late-flights/predict"
JSON = {"content-type": "application/json"}
LIMIT = 4096


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataPlane]:
    """Two workers, one HTTP process."""
    server = DataPlane(tmp_path_factory.mktemp("plane"), max_body_bytes=LIMIT)
    try:
        server.ready()
        yield server
    finally:
        server.end()


def _exchange(port: int, *pieces: bytes) -> bytes:
    """What comes back on one connection that the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_readiness_names_the_workers(plane: DataPlane) -> None:
    """An operator could not see which worker is which process, nor whether one is slow."""
    body = plane.get("/health/ready").json()
    assert (body["status"], body["models"]) == ("ready", [])
    assert [(each["id"], each["spare"]) for each in body["workers"]] == [(0, False), (1, False), (2, True)]
    forked = {each.pid for each in plane.fork_server().children()}
    assert len({each["pid"] for each in body["workers"]} & forked) == 3
    assert all(each["connected"] and 0 < each["round_trip"] < 1 for each in body["workers"])


@pytest.mark.parametrize("path", READ_PATHS)
def test_health_answers_get_and_head_alike(plane: DataPlane, path: str) -> None:
    """Load balancers that probe with HEAD would take the server out of service."""
    got, head = plane.client.get(path), plane.client.head(path)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_open_inference_clients_find_their_health(plane: DataPlane) -> None:
    """Clients made for the Open Inference Protocol would think the server dead."""
    assert plane.get("/v2/health/live").json() == {"live": True}
    assert plane.get("/v2/health/ready").json() == {"ready": True}


REFUSALS: list[tuple[str, str, dict[str, Any], int, str, dict[str, Any]]] = [
    ("POST", PREDICT, {"json": {"input_data": {}}}, 404, "ModelNotFound", {"model_id": "late-flights", "known": []}),
    ("POST", PREDICT, {"content": b"{}", "headers": {"content-type": "application/vnd.x+json"}}, 404, "ModelNotFound", {}),
    ("POST", PREDICT, {"content": b"{}"}, 415, "WrongContentType", {"given": ""}),
    ("POST", PREDICT, {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "WrongContentType", {"given": "text/plain"}),
    ("POST", PREDICT, {"content": b" " * (LIMIT + 1), "headers": JSON}, 413, "BodyTooLarge", {"limit_bytes": LIMIT}),
    ("POST", PREDICT, {"content": iter([b" " * LIMIT, b" "]), "headers": JSON}, 413, "BodyTooLarge", {}),
    ("GET", PREDICT, {}, 405, "MethodNotAllowed", {"method": "GET", "allowed": ["POST"]}),
    ("OPTIONS", PREDICT, {}, 405, "MethodNotAllowed", {}),
    ("POST", "/health/live", {}, 405, "MethodNotAllowed", {"allowed": ["GET", "HEAD"]}),
    ("DELETE", "/metrics", {}, 405, "MethodNotAllowed", {}),
    ("POST", PREDICT + "/", {"json": {}}, 404, "PathNotFound", {}),
    ("POST", "/ml/models//predict", {"json": {}}, 404, "PathNotFound", {}),
    ("GET", "/ml/models/{model_id}/predict", {}, 405, "MethodNotAllowed", {}),
    ("GET", "/nowhere?x=1", {}, 404, "PathNotFound", {"path": "/nowhere"}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "sent", "status", "error", "facts"), REFUSALS)
def test_each_refusal_says_what_is_wrong(
    plane: DataPlane, method: str, path: str, sent: dict[str, Any], status: int, error: str, facts: dict[str, Any]
) -> None:
    """A caller would get an answer of another shape, and could not tell what to correct."""
    answer = plane.client.request(method, path, **sent)
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, error)
    assert body["detail"].endswith(".")
    assert facts.items() <= body.items()
    assert answer.headers["content-type"] == "application/json"
    if status == 405:
        assert answer.headers["allow"] == ", ".join(body["allowed"])


def test_unknown_paths_name_the_known_ones(plane: DataPlane) -> None:
    """Whoever mistypes a path would have to look for the documentation."""
    known = plane.get("/helth").json()["known"]
    assert known == sorted(known)
    assert {*READ_PATHS, "/ml/models/{model_id}/predict", "/v2/models/{model_id}/versions/{version}/infer"} <= set(
        known
    )


@pytest.mark.parametrize("path", ["/", "/predict", "/info", "/shutdown", "/health", "/docs", "/openapi.json", "/redoc"])
def test_litserves_own_routes_are_not_reachable(plane: DataPlane, path: str) -> None:
    """A request to LitServe's own predict would wait for ever; its shutdown would end the server."""
    for method in ("GET", "POST"):
        answer = plane.client.request(method, path)
        assert (answer.status_code, answer.json()["error"]) == (404, "PathNotFound")


def test_a_body_at_the_limit_is_read(plane: DataPlane) -> None:
    """The last allowed byte would be refused."""
    body = b"{}" + b" " * (LIMIT - 2)
    assert plane.client.post(PREDICT, content=body, headers=JSON).status_code == 404


def test_a_refused_body_is_never_asked_for(plane: DataPlane) -> None:
    """A client that announces a gigabyte would be told to send it, only to be refused afterwards."""
    head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
    answer = _exchange(plane.port, f"{head}content-length: 1000000000\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_garbage_closes_one_connection_only(plane: DataPlane) -> None:
    """A port scanner could take the server down."""
    assert _exchange(plane.port, b"\x16\x03\x01\x00\xff\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert plane.get("/health/live").status_code == 200


def test_requests_share_a_connection(plane: DataPlane) -> None:
    """Every request would pay for a connection of its own, also after an error."""
    requests = b"".join(
        f"{line} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{extra}\r\n{body}".encode()
        for line, body, extra in [
            ("GET /nowhere", "", ""),
            (f"POST {PREDICT}", "{}", ""),
            (f"POST {PREDICT}", "{}", "content-type: application/json\r\n"),
            ("GET /health/live", "", "connection: close\r\n"),
        ]
    )
    answers = _exchange(plane.port, requests)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"404", b"415", b"404", b"200"]


def test_a_clients_request_id_comes_back(plane: DataPlane) -> None:
    """A request could not be followed from the caller's log into ours."""
    mine = str(uuid.uuid4())
    assert plane.client.get("/health/live", headers={"x-request-id": mine}).headers["x-request-id"] == mine


@pytest.mark.parametrize("given", [None, "42", "not-a-uuid", "a" * 36, "6f1b7a52-0c1e-4d55-9a4e-0a5d3c1f7b11x"])
def test_a_request_without_a_valid_id_gets_one(plane: DataPlane, given: str | None) -> None:
    """Whatever a client writes into the header would end up in logs and in the database as an id."""
    headers = {} if given is None else {"x-request-id": given}
    answers = [plane.client.post("/nowhere", headers=headers) for _ in range(2)]
    ids = {uuid.UUID(each.headers["x-request-id"]) for each in answers}
    assert len(ids) == 2


def test_metrics_count_by_template(plane: DataPlane) -> None:
    """Every mistyped path and every model name would become a time series of its own and fill the metrics store."""
    labels = {"route": "/ml/models/{model_id}/predict", "method": "POST", "status": "404"}
    before = plane.metric("switchyard_http_requests_total", **labels)
    plane.client.post("/ml/models/secret-name/predict", json={})
    plane.client.get("/secret-path")
    assert plane.metric("switchyard_http_requests_total", **labels) == before + 1
    text = plane.get("/metrics").text
    assert "secret" not in text
    assert plane.metric("switchyard_http_requests_total", route="(unknown)", method="GET", status="404") >= 1


def test_metrics_of_a_healthy_server(plane: DataPlane) -> None:
    """Alerts on lost workers and restarts would fire without reason, or never."""
    assert plane.metric("switchyard_workers") == plane.metric("switchyard_workers_connected") == 3
    assert plane.metric("switchyard_worker_restarts_total") == plane.metric("switchyard_api_restarts_total") == 0
    assert 0 < time.time() - plane.metric("switchyard_process_start_time_seconds") < 600
    assert plane.metric("switchyard_http_request_duration_seconds_count", route="/metrics") > 0
    assert plane.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_worker_survives_what_is_not_a_frame(plane: DataPlane) -> None:
    """One broken connection would end a worker, and with it every model it holds."""
    before = {each["pid"] for each in plane.ready()}
    for worker in range(2):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(15)
            connection.connect(str(_sockets(plane) / f"worker-{plane.port}-{worker}"))
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            received = b"".join(iter(lambda: _received(connection), b""))
            assert len(received) == 28 + 18  # its HELLO and what it holds, then it closes
    assert {each["pid"] for each in plane.ready()} == before


def test_a_peer_that_does_not_read_harms_nobody(plane: DataPlane) -> None:
    """A stopped HTTP process would hang every worker that has an answer for it."""
    from serving.channel import Kind, pack
    from serving.peer import GIVEN_UP_AFTER

    pings = pack(Kind.PING, 1) * 4096
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(_sockets(plane) / f"worker-{plane.port}-0"))
        connection.setblocking(False)

        def dropped() -> bool:
            try:
                connection.send(pings)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        end = time.monotonic() + 2 * GIVEN_UP_AFTER
        while not dropped():
            assert time.monotonic() < end
            assert len(plane.ready()) == 3  # and answer meanwhile
            time.sleep(0.01)
    assert len(plane.ready()) == 3
    assert plane.fork_server().children()[0].memory_info().rss < 600e6


def test_every_line_of_the_log_is_json(plane: DataPlane) -> None:
    """Log shippers would drop lines, or take one traceback for fifty events."""
    lines = plane.logged()
    assert {line["part"] for line in lines} == {"data-plane"}
    assert all({"time", "level", "event", "logger"} <= line.keys() for line in lines)
    assert not [line for line in lines if "/health/live" in json.dumps(line)]


def _sockets(plane: DataPlane) -> Path:
    from serving.channel import SocketFolder

    return SocketFolder(plane.data_folder / "run", plane.port).path


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def test_readiness_falls_while_no_worker_answers_and_liveness_stays(tmp_path: Path) -> None:
    """Traffic would go to a server whose workers hang, or a restart would hit one that only waits for them."""
    plane = DataPlane(tmp_path, workers=1)
    try:
        pids = {each["pid"] for each in plane.ready()}
        workers = [each for each in plane.tree() if each.pid in pids]
        for each in workers:
            each.suspend()
        started = time.monotonic()
        answer = plane.get("/health/ready")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"] == "NotReady"
        assert time.monotonic() - started < 5
        assert plane.get("/v2/health/ready").status_code == 503
        assert plane.get("/health/live").status_code == 200
        for each in workers:
            each.resume()
        assert eventually(lambda: plane.get("/health/ready").status_code == 200, "ready again")
    finally:
        plane.end()


def test_counts_of_all_http_processes_add_up(tmp_path: Path) -> None:
    """With two HTTP processes each scrape would show half of the traffic, and a crash would lose it."""
    plane = DataPlane(tmp_path, api_processes=2, workers=1)

    def ask(times: int) -> None:
        for _ in range(times):
            assert plane.get("/nowhere").status_code == 404

    def seen() -> float:
        return plane.metric("switchyard_http_requests_total", route="(unknown)", status="404")

    try:
        plane.ready()
        first, second = plane.apis()
        for stopped, times in ((first, 5), (second, 7)):
            stopped.suspend()
            ask(times)
            stopped.resume()
        for stopped in (first, second):  # each alone answers with the sum
            stopped.suspend()
            assert seen() == 12
            stopped.resume()
        connected = [plane.metric("switchyard_workers_connected", api_process=str(slot)) for slot in range(2)]
        assert connected == [2, 2]  # the worker and the spare
        for process in (first, second):
            process.kill()
        eventually(lambda: plane.metric("switchyard_api_restarts_total") == 2, "both back")
        assert seen() == 12
    finally:
        plane.end()


def test_a_slow_reader_of_the_answer_is_only_its_own_problem(plane: DataPlane) -> None:
    """One client that does not read would hold up every other."""
    with socket.create_connection(("127.0.0.1", plane.port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
        assert httpx.get(f"http://127.0.0.1:{plane.port}/health/live", timeout=5).status_code == 200
