"""The load generator and the layers of the profile: real sockets, a real server, a process of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import serving
from benchmarks.serving.layers import _LAYER_OF, _PART_OF, HTTP, SHIPPER, WORKER, layers, parse
from benchmarks.serving.load import Generation, OpenLoop, run_closed, run_open
from benchmarks.serving.outcome import Question, Target
from benchmarks.waiting import wait_for


@contextmanager
def server(status: int = 200, pause: float = 0.0) -> Iterator[Target]:
    """A real one that answers everything with this status, and makes its first client wait."""
    first = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if pause and not first.is_set():
                first.set()
                time.sleep(pause)  # the server is slow, on purpose
            self.send_response(status)
            self.send_header("Retry-After", "2")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield Target(listening.server_address[1], (Question("/predict", b'{"x":1}', 0),))
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


class TestGenerator:
    """Real sockets, a real server, a process of its own."""

    def test_closed_loop_counts_what_is_answered(self) -> None:
        """Throughput would be made up."""
        with server() as target:
            found = run_closed(target, 2, 0.3)
        assert found.answered > 5
        assert not found.errors
        assert 0 < found.p50 <= found.p95 <= found.p99 < 0.3

    def test_open_loop_keeps_its_rate_and_says_how_late_it_was(self) -> None:
        """The load at 75 % would be another one than it says."""
        with server() as target:
            found = run_open(target, 16, 1.0, OpenLoop(100.0, seed=3), processes=2)
        assert 60 < found.answered_in_all < 140
        assert not found.errors
        assert found.generator_late is not None
        assert len(found.thirds) == 3

    def test_who_waits_for_a_stopped_server_is_charged_for_it(self) -> None:
        """A server that stops for a moment would be charged with one slow request instead of all that came."""
        with server(pause=0.5) as target:
            found = run_open(target, 1, 0.6, OpenLoop(100.0))
        assert found.held_back > 20
        assert found.p50 > 0.1
        assert found.p99 >= 0.45

    def test_refusals_are_counted_with_their_time_and_what_they_say(self) -> None:
        """An overload would be judged by those who got in."""
        with server(429) as target:
            found = run_open(target, 8, 0.3, OpenLoop(100.0))
        assert found.answered == 0
        assert found.errors["429"] == found.retry_after["2"] > 5
        assert found.refused_p99 is not None

    def test_a_long_log_does_not_hold_the_generator_up(self) -> None:
        """A measurement that somebody watches from outside would never end."""
        with server() as target:
            # What it notes of 4,000 requests is more than a pipe holds.
            generation = Generation(target, 8, 1.0, OpenLoop(4_000.0))
            try:
                wait_for(lambda: generation.is_over, "the generator to end", 30)
                found = generation.load()
                assert found.answered_in_all + sum(found.errors.values()) > 3_500
            finally:
                generation.end()

    def test_a_server_that_is_not_there_breaks_the_measurement_off(self) -> None:
        """Nothing asked would be nothing failed."""
        with server() as target:
            port = target.port
        with pytest.raises(ChildProcessError, match="status 1"):
            run_closed(Target(port, target.questions), 1, 0.1)


class TestLayers:
    """Samples of stacks."""

    def test_a_library_counts_for_who_called_it(self) -> None:
        """All time would be numpy's, or all would be the event loop's."""
        lines = [
            "process 7:python;run (/x/site-packages/uvicorn/server.py:61);answer (/app/serving/front.py:9);"
            "encode (/app/serving/input_schema/schema.py:3);array (/x/site-packages/numpy/core.py:1) 5",
            "run (/x/site-packages/uvicorn/server.py:61);new (/app/serving/front.py:9);go (/app/serving/new_idea.py:3) 2",
            "work (/app/serving/worker_process.py:1);answer (/app/serving/engines.py:2);f (/x/site-packages/sklearn/a.py:3) 4",
            "run (/app/serving/shipper/process.py:1);commit (/x/site-packages/sqlalchemy/a.py:3) 3",
            "something else entirely",
        ]
        assert layers(parse(lines)) == {
            (HTTP, "validation"): 5,
            (HTTP, "serving/new_idea.py"): 2,
            (WORKER, "model"): 4,
            (SHIPPER, "all"): 3,
        }

    def test_the_map_names_files_that_exist(self) -> None:
        """A file that was renamed would be counted for its caller, and nobody would know."""
        root = Path(serving.__file__).parents[1]
        named = [where for where, _ in (*_PART_OF, *(rule for rules in _LAYER_OF.values() for rule in rules))]
        missing = [each for each in named if each.startswith("serving/") and not (root / each).exists()]
        assert not missing
