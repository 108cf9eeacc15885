"""How a data plane starts, survives what happens to its processes, and ends. A server of its own for each test."""

import http.client
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.data_plane import GUARD, DataPlane, eventually

Start = Callable[..., DataPlane]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts data planes, and ends them when the test is over."""
    started: list[DataPlane] = []

    def one(**settings: Any) -> DataPlane:
        started.append(DataPlane(tmp_path / str(len(started)), **settings))
        return started[-1]

    yield one
    for plane in started:
        plane.end()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataPlane]:
    """One for all tests that it survives. It drains for longer than they last, so that merely waiting is noticed."""
    plane = DataPlane(tmp_path_factory.mktemp("lasting"), workers=2, drain_timeout=60)
    started = time.monotonic()
    plane.ready()
    assert time.monotonic() - started < 45
    yield plane
    plane.end()


class Prober:
    """Asks for readiness without pause, each time over a new connection, and keeps what was not 200."""

    def __init__(self, plane: DataPlane) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self._plane = plane
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Prober":
        self._thread.start()
        eventually(lambda: self.answers, "a first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._plane.get("/health/ready")
                if answer.status_code != 200:
                    self.failures.append(answer.text)
            except httpx.TransportError as problem:
                self.failures.append(repr(problem))
            self.answers += 1


def _replaced(plane: DataPlane, old: set[int]) -> list[dict[str, Any]]:
    """The workers, once none of the old ones is among them."""

    def all_new() -> list[dict[str, Any]] | None:
        workers = plane.ready()
        return workers if not old & {each["pid"] for each in workers} else None

    return eventually(all_new, f"workers other than {old}")


def _half_a_request(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=GUARD)
    head = (
        "POST /ml/models/m/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n"
    )
    connection.sendall(head.encode() + b'{"a":')
    return connection


def test_a_killed_worker_is_back_at_once_and_nobody_notices(lasting: DataPlane) -> None:
    """One crash, such as the kernel's for lack of memory, would take the model off the air."""
    victim = lasting.ready()[0]["pid"]
    before = lasting.metric("switchyard_worker_restarts_total")
    with Prober(lasting) as prober:
        os.kill(victim, signal.SIGKILL)
        workers = _replaced(lasting, {victim})
    assert prober.failures == []
    assert [each["id"] for each in workers] == [0, 1, 2]
    assert lasting.metric("switchyard_worker_restarts_total") == before + 1
    assert lasting.metric("switchyard_workers_connected") == 3


def test_a_worker_that_is_asked_to_end_hands_over(lasting: DataPlane) -> None:
    """Replacing a worker by hand or for its memory would fail the requests that it holds."""
    old = {each["pid"] for each in lasting.ready()}
    with Prober(lasting) as prober:
        for pid in old:
            os.kill(pid, signal.SIGTERM)
            _replaced(lasting, {pid})
    assert prober.failures == []
    ended = [line for line in lasting.logged() if line["event"] == "process ended, starting it again"]
    assert [line["exit_code"] for line in ended if line["pid"] in old] == [0, 0, 0]


def test_a_killed_http_process_is_back_at_once(lasting: DataPlane) -> None:
    """The port would accept connections that nobody answers, until each client's own timeout."""
    lasting.ready()
    before = lasting.metric("switchyard_api_restarts_total")
    (victim,) = lasting.apis()
    victim.kill()
    # Waits in the listening socket, which stays open; and lanes stand before the first request is taken.
    assert lasting.get("/health/ready").status_code == 200
    (successor,) = lasting.apis()
    assert successor.pid != victim.pid
    assert lasting.metric("switchyard_api_restarts_total") == before + 1


def test_workers_go_on_when_their_fork_server_dies(lasting: DataPlane) -> None:
    """Workers would go on unsupervised beside new ones, holding twice the memory, or all be gone for seconds."""
    lasting.ready()
    (api,) = lasting.apis()
    api.kill()  # its successor inherits what the parent holds of the workers, and must not keep the old ones alive
    old = {each["pid"] for each in lasting.ready()}
    with Prober(lasting) as prober:
        lasting.fork_server().kill()
        _replaced(lasting, old)
    assert prober.failures == []
    eventually(lambda: not old & {each.pid for each in lasting.tree()}, "the old workers gone")
    eventually(lambda: len(lasting.fork_server().children()) == 5, "three workers, the agent and the shipper")


def test_a_ctrl_c_is_the_parents_to_act_on(lasting: DataPlane) -> None:
    """A terminal's Ctrl-C reaches every process: one that goes first would cut its clients off."""
    workers = {each["pid"] for each in lasting.ready()}
    apis = {each.pid for each in lasting.apis()}
    before = lasting.metric("switchyard_api_restarts_total")
    for pid in workers | apis:
        os.kill(pid, signal.SIGINT)
    end = time.monotonic() + 1  # ten times what an HTTP process takes to act on a signal
    while time.monotonic() < end:
        assert "connection" not in lasting.get("/health/live").headers
    assert {each["pid"] for each in lasting.ready()} == workers
    assert {each.pid for each in lasting.apis()} == apis
    assert lasting.metric("switchyard_api_restarts_total") == before


def test_a_second_start_on_the_same_port_leaves_the_first_alone(lasting: DataPlane, start: Start) -> None:
    """A double start would take the sockets of the running server away from it."""
    workers = lasting.ready()
    second = start(data_plane_port=lasting.port, data_folder=lasting.data_folder)
    assert second.process.wait(GUARD) == 1
    for each in lasting.apis():
        each.kill()  # its successor has to find the workers' sockets
    assert [each["pid"] for each in lasting.ready()] == [each["pid"] for each in workers]


def test_a_worker_that_cannot_start_is_tried_ever_more_slowly(lasting: DataPlane) -> None:
    """A crash loop would eat a core and bury the log; when its cause is gone the worker must come back by itself."""
    workers = lasting.ready()
    before = lasting.metric("switchyard_worker_restarts_total")
    run = lasting.socket_folder
    for file in run.iterdir():
        file.unlink()
    run.rmdir()
    run.touch()
    began = time.monotonic()
    for each in workers:
        os.kill(each["pid"], signal.SIGKILL)
    restarts = 4 * len(workers)
    eventually(lambda: lasting.metric("switchyard_worker_restarts_total") >= before + restarts, "four attempts at each")
    assert time.monotonic() - began >= 0.2 + 0.4  # the pauses before the third and the fourth
    assert lasting.get("/health/live").status_code == 200
    assert lasting.get("/health/ready").status_code == 503
    run.unlink()
    run.mkdir(mode=0o700)
    lasting.ready()


@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_survives_a_killed_parent(start: Start, processes: int) -> None:
    """Orphans would keep the port and go on serving, and the next start would fail."""
    plane = start(api_processes=processes, workers=2)
    plane.ready()
    assert len(plane.tree()) >= 3 + processes + 5
    plane.process.kill()
    plane.process.wait()
    plane.gone()
    if processes == 1:
        again = start(data_plane_port=plane.port, data_folder=plane.data_folder)
        again.ready()


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C", "SIGTERM to all"])
def test_it_stops_in_order_and_answers_what_is_under_way(start: Start, how: str) -> None:
    """Each deployment would cost its users failed requests, or leave processes behind."""
    plane = start(api_processes=2, workers=2)
    plane.ready()
    with _half_a_request(plane.port) as under_way, socket.create_connection(("127.0.0.1", plane.port)) as idle:
        idle.settimeout(GUARD)
        if how == "SIGTERM":
            plane.process.send_signal(signal.SIGTERM)
        else:  # a terminal signals the whole group, and so does systemd
            os.killpg(plane.process.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
        assert idle.recv(1) == b""  # closed: the stop has begun
        for byte in b" 1 } ":
            time.sleep(0.2)  # a request that takes a second
            under_way.sendall(bytes([byte]))
        answer = b"".join(iter(lambda: under_way.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close" in answer
    assert plane.process.wait(GUARD) == 0
    plane.gone()
    with pytest.raises(httpx.ConnectError):
        plane.get("/health/live")
    if how != "SIGTERM to all":  # there the fork server may be seen to die before the parent hears of its own end
        assert {line["level"] for line in plane.logged()} == {"info"}
    assert not plane.socket_folder.exists() or list(plane.socket_folder.iterdir()) == []


def test_a_client_under_load_sees_no_reset_when_it_stops(start: Start) -> None:
    """Clients with open connections would get resets instead of a last answer that says: connect elsewhere."""
    plane = start(workers=1)
    plane.ready()
    faults: list[str] = []
    served = threading.Semaphore(0)

    def ask_until_refused() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", plane.port, timeout=GUARD)
        try:
            while True:  # the connection is opened anew only after an answer that said it would be closed
                connection.request("GET", "/health/live")
                assert connection.getresponse().read() == b'{"status":"live"}'
                served.release()
                time.sleep(0.005)  # a client that is idle in between, as most are
        except ConnectionRefusedError:
            pass
        except (http.client.HTTPException, OSError) as problem:
            faults.append(repr(problem))
        finally:
            connection.close()

    clients = [threading.Thread(target=ask_until_refused) for _ in range(4)]
    for each in clients:
        each.start()
    for _ in range(200):
        served.acquire()
    plane.process.send_signal(signal.SIGTERM)
    for each in clients:
        each.join()
    assert faults == []
    assert plane.process.wait(GUARD) == 0


def test_a_request_that_never_ends_does_not_hold_up_the_stop(start: Start) -> None:
    """One stuck client would keep the old server alive for ever."""
    plane = start(workers=1, drain_timeout=0.5)
    plane.ready()
    with _half_a_request(plane.port):
        plane.process.send_signal(signal.SIGTERM)
        assert plane.process.wait(GUARD) == 0
    plane.gone()
    assert not [line for line in plane.logged() if "killed" in line["event"]]  # the HTTP process did it by itself


def test_a_stop_while_it_starts_is_a_stop(start: Start) -> None:
    """Ctrl-C in the first second would print a traceback or leave the fork server behind."""
    plane = start()
    eventually(lambda: len(plane.tree()) >= 2, "a first child")
    plane.process.send_signal(signal.SIGINT)
    assert plane.process.wait(GUARD) == 0
    plane.gone()
    assert "Traceback" not in plane.log.read_text()


def test_liveness_answers_before_the_workers_are_there(start: Start) -> None:
    """A slow start would be taken for a hang and restarted, again and again."""
    plane = start(workers=1)
    eventually(lambda: plane.get("/health/live").status_code == 200, "live")
    eventually(lambda: plane.get("/health/ready").status_code == 200, "ready")


def test_a_deep_data_folder_is_no_obstacle(start: Start, tmp_path: Path) -> None:
    """It could not start from a checkout in a long path, as build machines have them."""
    deep = tmp_path / ("deep" * 20) / ("deeper" * 10)
    plane = start(data_folder=deep, workers=1)
    victim = plane.ready()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    _replaced(plane, {victim})
    plane.process.send_signal(signal.SIGTERM)
    assert plane.process.wait(GUARD) == 0
    assert len(str(plane.socket_folder)) < 60
    assert not plane.socket_folder.exists()


def _refused(tmp_path: Path, **settings: Any) -> tuple[int, str]:
    plane = DataPlane(tmp_path / "refused", **settings)
    try:
        status = plane.process.wait(GUARD)
        plane.gone()
        return status, plane.log.read_text()
    finally:
        plane.end()


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    """The most common mistake of all would end in a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = _refused(tmp_path, data_plane_port=port)
    assert status == 1
    assert len(said.splitlines()) == 1
    assert f"Port {port} of 127.0.0.1 is taken" in said
    assert "SWITCHYARD_DATA_PLANE_PORT" in said


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"data_plane_port": 80}, "SWITCHYARD_DATA_PLANE_PORT"),
        ({"workers": "many"}, "SWITCHYARD_WORKERS"),
        ({"log_level": "loud"}, "SWITCHYARD_LOG_LEVEL"),
        ({"host": "192.0.2.1"}, "SWITCHYARD_HOST"),
        ({"data_folder": "/dev/null/data"}, "SWITCHYARD_DATA_FOLDER"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(tmp_path: Path, settings: dict[str, Any], variable: str) -> None:
    """Whoever sets a value wrong would have to find it in a traceback."""
    status, said = _refused(tmp_path, **settings)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert variable in said


SUPERVISOR = 'import subprocess, sys; sys.exit(subprocess.run([sys.executable, "-m", "serving"]).returncode)'


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_it_ends_with_the_supervisor_that_started_it(start: Start) -> None:
    """When the supervisor is killed its data plane would stay behind and keep the port."""
    plane = start(command=[sys.executable, "-c", SUPERVISOR], stack_id="test")
    plane.ready()
    plane.process.kill()
    plane.process.wait()
    plane.gone()


def test_it_outlives_a_shell_that_started_it(start: Start) -> None:
    """Started in the background by hand, it would end when the terminal is closed."""
    plane = start(command=[sys.executable, "-c", SUPERVISOR])
    plane.ready()
    plane.process.kill()
    plane.process.wait()
    plane.ready()
