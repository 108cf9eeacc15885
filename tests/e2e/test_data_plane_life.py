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


def test_it_is_ready_within_seconds(start: Start) -> None:
    """A restart would cost more than the few seconds that callers retry for."""
    plane = start()
    started = time.monotonic()
    plane.ready()
    assert time.monotonic() - started < 45


def test_a_killed_worker_is_back_at_once_and_nobody_notices(start: Start) -> None:
    """One crash, such as the kernel's for lack of memory, would take the model off the air."""
    plane = start(workers=2)
    victim = plane.ready()[0]["pid"]
    with Prober(plane) as prober:
        os.kill(victim, signal.SIGKILL)
        workers = _replaced(plane, {victim})
    assert prober.failures == []
    assert [each["id"] for each in workers] == [0, 1, 2]
    assert plane.metric("switchyard_worker_restarts_total") == 1
    assert plane.metric("switchyard_workers_connected") == 3


def test_a_worker_that_is_asked_to_end_hands_over(start: Start) -> None:
    """Replacing a worker by hand or for its memory would fail the requests that it holds."""
    plane = start(workers=2, drain_timeout=60)  # so that a worker which merely waits for its end is noticed
    old = {each["pid"] for each in plane.ready()}
    with Prober(plane) as prober:
        for pid in old:
            os.kill(pid, signal.SIGTERM)
            _replaced(plane, {pid})
    assert prober.failures == []
    ended = [line for line in plane.logged() if line["event"] == "process ended, starting it again"]
    assert [line["exit_code"] for line in ended] == [0, 0, 0]


def test_a_killed_http_process_is_back_at_once(start: Start) -> None:
    """The port would accept connections that nobody answers, until each client's own timeout."""
    plane = start(api_processes=1, workers=1)
    plane.ready()
    (victim,) = plane.apis()
    victim.kill()
    # Waits in the listening socket, which stays open; and lanes stand before the first request is taken.
    assert plane.get("/health/ready").status_code == 200
    (successor,) = plane.apis()
    assert successor.pid != victim.pid
    assert plane.metric("switchyard_api_restarts_total") == 1


def test_workers_go_on_when_their_fork_server_dies(start: Start) -> None:
    """Workers would go on unsupervised beside new ones, holding twice the memory, or all be gone for seconds."""
    plane = start(workers=2)
    plane.ready()
    (api,) = plane.apis()
    api.kill()  # its successor inherits what the parent holds of the workers, and must not keep the old ones alive
    old = {each["pid"] for each in plane.ready()}
    with Prober(plane) as prober:
        plane.fork_server().kill()
        _replaced(plane, old)
    assert prober.failures == []
    eventually(lambda: not old & {each.pid for each in plane.tree()}, "the old workers gone")
    eventually(lambda: len(plane.fork_server().children()) == 5, "three workers, the agent and the shipper")


def test_a_worker_that_cannot_start_is_tried_ever_more_slowly(start: Start) -> None:
    """A crash loop would eat a core and bury the log; when its cause is gone the worker must come back by itself."""
    plane = start(workers=1)
    workers = plane.ready()  # the worker and the spare
    run = plane.data_folder / "run"
    for each in run.iterdir():
        each.unlink()
    run.rmdir()
    run.touch()
    began = time.monotonic()
    for each in workers:
        os.kill(each["pid"], signal.SIGKILL)
    eventually(lambda: plane.metric("switchyard_worker_restarts_total") >= 8, "four attempts at each")
    assert time.monotonic() - began >= 0.2 + 0.4  # the pauses before the third and the fourth
    assert plane.get("/health/live").status_code == 200
    assert plane.get("/health/ready").status_code == 503
    run.unlink()
    run.mkdir()
    plane.ready()


@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_survives_a_killed_parent(start: Start, processes: int) -> None:
    """Orphans would keep the port and go on serving, and the next start would fail."""
    plane = start(api_processes=processes, workers=2)
    plane.ready()
    assert len(plane.tree()) >= 3 + processes + 5
    plane.process.kill()
    plane.process.wait()
    plane.gone()
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
    assert list((plane.data_folder / "run").iterdir()) == []


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


def test_a_ctrl_c_is_the_parents_to_act_on(start: Start) -> None:
    """A terminal's Ctrl-C reaches every process: one that goes first would cut its clients off."""
    plane = start(workers=2)
    workers = {each["pid"] for each in plane.ready()}
    apis = {each.pid for each in plane.apis()}
    for pid in workers | apis:
        os.kill(pid, signal.SIGINT)
    end = time.monotonic() + 1  # ten times what an HTTP process takes to act on a signal
    while time.monotonic() < end:
        assert "connection" not in plane.client.get("/health/live").headers
    assert {each["pid"] for each in plane.ready()} == workers
    assert {each.pid for each in plane.apis()} == apis
    assert plane.metric("switchyard_api_restarts_total") == 0


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
    from serving.channel import SocketFolder

    folder = SocketFolder(deep / "run", plane.port).path
    assert len(str(folder)) < 60
    assert not folder.exists()


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


def test_a_second_start_on_the_same_port_leaves_the_first_alone(start: Start) -> None:
    """A double start would take the sockets of the running server away from it."""
    first = start(workers=1)
    workers = first.ready()
    second = start(data_plane_port=first.port, data_folder=first.data_folder)
    assert second.process.wait(GUARD) == 1
    for each in first.apis():
        each.kill()  # its successor has to find the workers' sockets
    assert [each["pid"] for each in first.ready()] == [each["pid"] for each in workers]


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
