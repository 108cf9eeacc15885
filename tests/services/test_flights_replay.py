"""The replay against a real HTTP server: what it sends of each flight, what it measures, and how it fails."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score

from examples.flights import data, replay
from tests.processes import ROOT, clean_environment, free_port

FLIGHTS = 60


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One table of flights for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def questions(cache: Path) -> list[replay.Question]:
    return replay.read_questions([4], FLIGHTS, "a run", cache)


class DataPlane(ThreadingHTTPServer):
    """Says that a flight is late the longer it is; counts connections, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.connections: set[Any] = set()
        self.refusals: list[tuple[int, dict[str, str], bytes]] = []  # for the next requests
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DataPlane

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.connections.add(self.client_address)
            refusal = self.server.refusals.pop(0) if self.server.refusals else None
            if refusal is None:
                self.server.asked.append(body)
        status, headers, said = refusal or (200, {}, json.dumps(_predicted(body)).encode())
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _score(body: dict[str, Any]) -> float:
    return min(1.0, float(body["input_data"]["distance"]) / 2500)


def _predicted(body: dict[str, Any]) -> dict[str, Any]:
    score = _score(body)
    prediction = {"label": int(score > 0.5), "probabilities": {"0": 1 - score, "1": score}}
    return {"request_id": body["request_id"], "predictions": [prediction], "model_version": "3"}


@pytest.fixture
def server() -> Iterator[DataPlane]:
    running = DataPlane()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def test_requests_are_the_flights_in_order_of_departure(questions: list[replay.Question], cache: Path) -> None:
    """Event time would jump about, and windows by it would hold the wrong flights."""
    flights = data.load_flights(cache)
    bodies = [json.loads(each.body) for each in questions]
    times = [pd.Timestamp(each["timestamp"]) for each in bodies]
    assert times == sorted(times)
    assert {each.tz_convert(data.NEW_YORK).month for each in times} == {4}
    assert times[0].tz_convert(data.NEW_YORK).day <= 3  # spread over the month, not its first day
    assert times[-1].tz_convert(data.NEW_YORK).day >= 28
    of_april = flights[flights["month"] == 4]
    for body, question in zip(bodies, questions, strict=True):
        assert list(body["input_data"]) == data.FEATURES
        same = of_april[
            (of_april["event_time"] == body["timestamp"]) & (of_april["dest"] == body["input_data"]["dest"])
        ]
        assert body["user_id"] in set(same["unit_id"])
        assert question.late in {None if pd.isna(each) else each for each in same["late"]}


def test_ids_follow_from_run_and_flight(questions: list[replay.Question], cache: Path) -> None:
    """Labels could not be sent to what was asked; or a second replay would only get the first one's answers again."""

    def ids(run: str) -> list[str]:
        return [json.loads(each.body)["request_id"] for each in replay.read_questions([4], FLIGHTS, run, cache)]

    first = [json.loads(each.body)["request_id"] for each in questions]
    assert ids("a run") == first
    assert len(set(first)) == FLIGHTS
    assert not set(ids("another run")) & set(first)


def test_missing_weather_is_null(cache: Path) -> None:
    """NaN is no JSON: the request would be refused as malformed."""
    bodies = [each.body for each in replay.read_questions([4], 2_000, "a run", cache)]
    assert any(b'"pressure": null' in each for each in bodies)
    assert not any(b"NaN" in each for each in bodies)


def test_figures_are_those_of_the_traffic(server: DataPlane, questions: list[replay.Question]) -> None:
    """The demo would print figures of something else than what it has just done."""
    progress: list[int] = []
    traffic = replay.replay(server.url, questions, connections=4, progress=progress.append)
    found = replay.report(questions, traffic)
    assert Counter(each["request_id"] for each in server.asked) == Counter(
        json.loads(each.body)["request_id"] for each in questions
    )
    assert (sum(progress), len(server.connections)) == (FLIGHTS, 4)  # kept open
    assert (found["requests"], found["failed"], found["versions"]) == (FLIGHTS, 0, {"3": FLIGHTS})
    known = [(each.late, _score(json.loads(each.body))) for each in questions if each.late is not None]
    late, scores = [late for late, _ in known], [score for _, score in known]
    quality = found["quality"]
    assert quality["flights"] == len(known)
    assert quality["accuracy"] == pytest.approx(accuracy_score(late, [each > 0.5 for each in scores]), abs=1e-4)
    assert quality["roc_auc"] == pytest.approx(roc_auc_score(late, scores), abs=1e-4)
    assert quality["brier"] == pytest.approx(brier_score_loss(late, scores), abs=1e-4)
    assert quality["late"] == pytest.approx(sum(map(bool, late)) / len(late), abs=1e-4)
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < traffic.seconds * 1000


def test_a_busy_server_is_asked_again_and_a_refusal_is_counted(
    server: DataPlane, questions: list[replay.Question]
) -> None:
    """A replay with losses would look like one without, or a moment of load would end it."""
    busy = (429, {"Retry-After": "0"}, b'{"error": "TooManyRequests", "detail": "busy"}')
    refused: tuple[int, dict[str, str], bytes] = (422, {}, b'{"error": "ValidationFailed", "detail": "odd"}')
    server.refusals = [busy, busy, refused, (200, {}, b"<html>")]
    found = replay.report(questions, replay.replay(server.url, questions, connections=1))
    assert (found["requests"], found["failed"], found["retried"]) == (FLIGHTS, 2, 2)
    assert found["problems"]["422 ValidationFailed: odd"] == 1
    assert any("UnexpectedAnswer" in each for each in found["problems"])


def test_nothing_answered_has_no_quality(server: DataPlane, questions: list[replay.Question]) -> None:
    """A failed replay would end in a traceback, or in an accuracy of 0."""
    server.refusals = [(404, {}, b'{"error": "ModelNotFound", "detail": "none"}')] * FLIGHTS
    found = replay.report(questions, replay.replay(server.url, questions))
    assert found["failed"] == FLIGHTS
    assert set(found["quality"].values()) == {0, None}
    assert found["latency_ms"]["p50"] is None


class TestCommandLine:
    def test_it_ends_with_what_came_of_it(self, server: DataPlane, cache: Path) -> None:
        """Scripts go by the status, people by the table."""
        ran = _run("--limit", "20", "--url", server.url, "--cache-folder", str(cache))
        assert ran.returncode == 0, ran.stderr
        for words in ("accuracy", "roc_auc", "p99", "requests/s", "0 failed"):
            assert words in ran.stdout
        server.refusals = [(422, {}, b'{"error": "ValidationFailed", "detail": "odd"}')]
        ran = _run("--limit", "20", "--url", server.url, "--cache-folder", str(cache), "--json")
        assert ran.returncode == 1
        assert json.loads(ran.stdout)["failed"] == 1

    def test_nothing_there_and_wrong_months(self, cache: Path) -> None:
        """As the other commands say it."""
        ran = _run("--limit", "20", "--url", f"http://127.0.0.1:{free_port()}", "--cache-folder", str(cache))
        assert (ran.returncode, "switchyard up" in ran.stderr) == (3, True)
        assert _run("--month", "13").returncode == 2


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "examples.flights", "replay", *arguments],
        cwd=ROOT,
        env={**clean_environment(), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
    )
