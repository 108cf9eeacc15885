"""The commands that ask the API, against a real HTTP server that plays it: what they send, print and end with."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from control_plane import cli
from control_plane.commands import terminal
from tests.processes import BIN, clean_environment, free_port, wait_until

Json = dict[str, Any]
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]

SIGNATURE: Json = {
    "inputs": [
        {"name": "carrier", "type": "string", "required": True},
        {"name": "distance", "type": "double", "required": True},
        {"name": "seats", "type": "long", "required": False},
        {"name": "holiday", "type": "boolean", "required": False},
    ],
    "outputs": [{"name": "late", "type": "long", "required": True}],
    "params": [{"name": "depth", "type": "long", "default": 3, "shape": None}],
}
VERSION: Json = {
    "version": "3",
    "aliases": ["champion"],
    "tags": {},
    "metrics": {"roc_auc": 0.75, "brier": 0.15},
    "signature": SIGNATURE,
    "size_bytes": 482133,
    "digest": "4c9a",
    "created_at": "2013-04-01T06:00:00Z",
    "created_by": "ada",
    "state": "serving",
    "weight": 1.0,
    "run_id": "r",
    "description": "",
}
MODEL: Json = {
    "model_id": "flights",
    "version": "3",
    "status": "ready",
    "routes": [{"version": "3", "weight": 1.0}],
    "aliases": {"champion": "3"},
}
STATUS: Json = {
    **MODEL,
    "replicas": [
        {
            "replica": "127.0.0.1:8000",
            "workers": [{"id": 0}, {"id": 1}],
            "versions": {
                "2": {
                    "state": "ready",
                    "compilation": {"used": False, "reason": "StackingClassifier is not [compiled]"},
                },
                "3": {
                    "state": "ready",
                    "compilation": {
                        "used": True,
                        "reason": "",
                        "rows": 721,
                        "max_difference": 2e-16,
                        "native_us_1": 200.0,
                        "compiled_us_1": 20.0,
                        "native_us_64": 300.0,
                        "compiled_us_64": 40.0,
                    },
                },
                "4": {"state": "failed", "reason": "no such module [bold]"},
            },
            "route_revision": 7,
            "heartbeat": "2013-04-01T06:00:00Z",
        }
    ],
    "change": None,
    "last_known_good": {"version": "2"},
    "config": {"batch_size": 64, "timeout": 30},
}


def change(state: str, steps: list[Json] | None = None) -> Json:
    """A promotion in this state."""
    return {
        "id": "c-1",
        "kind": "promote",
        "model_id": "flights",
        "source": "3",
        "target": "4",
        "state": state,
        "reason": "better",
        "requested_by": "ada",
        "trigger": None,
        "plan": [{"step": "preparing", "what": "Load the target.", "limit_seconds": 300.0}],
        "detail": "",
        "steps": steps or [],
        "durations": {"validate": 0.5, "shift": 0.01, "detect": None},
        "links": {},
    }


def predicted(body: Json) -> Json:
    """An honest answer: late where it flies far; a row with a carrier of XX cannot be borne by the model."""
    rows = body["input_data"]["distance"]
    rows = rows if isinstance(rows, list) else [rows]
    late = [0.8 if each and each > 1000 else 0.1 for each in rows]
    return {
        "request_id": body.get("request_id", "generated"),
        "predictions": [
            {"label": int(each > 0.5), "probabilities": {"0": round(1 - each, 3), "1": each}} for each in late
        ],
        "confidence_scores": [max(each, 1 - each) for each in late],
        "processing_time": 0.002,
        "model_version": "3",
        "metadata": {},
    }


@dataclass
class Api:
    """The server's side of a test: what it answers, and what it was asked."""

    url: str
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    answers: dict[tuple[str, str], Callable[[Any], Answer]] = field(default_factory=dict)

    def on(self, method: str, path: str, answer: Callable[[Any], Answer]) -> None:
        self.answers[method, path] = answer

    def answer(self, method: str, path: str, body: Any) -> Answer:
        self.asked.append((method, path, body))
        if found := self.answers.get((method, path.partition("?")[0])):
            return found(body)
        return 404, {"error": "ModelNotFound", "detail": "There is no model. Known models: flights.", "known": []}

    def bodies(self, path: str = "/ml/models/flights/predict") -> list[Any]:
        return [body for _, asked, body in self.asked if asked == path]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A control plane with one model of three versions, the third serving."""
    played = Api("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _play(self) -> None:
            given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body, *headers = played.answer(self.command, self.path, json.loads(given) if given else None)
            sent = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            with suppress(ConnectionError):  # of who was interrupted
                self.wfile.write(sent)

        def handle(self) -> None:
            with suppress(ConnectionError):  # of a command that gave up with requests under way
                super().handle()

        do_GET = do_POST = do_PUT = _play  # noqa: N815 (the names that http.server calls)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    played.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("SWITCHYARD_CONTROL_PLANE_PORT", str(server.server_address[1]))
    monkeypatch.setenv("SWITCHYARD_DATA_PLANE_PORT", str(server.server_address[1]))
    played.on("GET", "/ml/models", lambda _: (200, {"items": [MODEL], "next": None, "unavailable": {}}))
    played.on("GET", "/ml/models/flights/versions", lambda _: (200, {"items": [VERSION], "next": None}))
    played.on("GET", "/ml/models/flights/status", lambda _: (200, STATUS))
    played.on("POST", "/ml/models/flights/predict", lambda body: (200, predicted(body)))
    yield played
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def switchyard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command, in this process: what `switchyard ...` does, without a second to start each."""

    for name in ("no_proxy", "NO_PROXY"):  # which it sets, and monkeypatch gives back
        monkeypatch.setenv(name, "localhost")
    for each in (terminal.console, terminal.beside):
        monkeypatch.setattr(each, "_width", 160)

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["switchyard", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return Ran(int(str(ended.value.code)), said.out, said.err)

    return run


@pytest.fixture
def flights(tmp_path: Path) -> Callable[..., str]:
    """A CSV file with these lines under the model's header."""

    def write(*lines: str, header: str = "carrier,distance,seats,holiday") -> str:
        path = tmp_path / "rows.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        return str(path)

    return write


class TestLists:
    def test_models_versions_and_status_are_tables(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """The first look at what there is."""
        models, versions, status = (
            switchyard("models"),
            switchyard("versions", "flights"),
            switchyard("status", "flights"),
        )
        for ran, words in (
            (models, ("flights", "ready", "champion 3", "3 100%")),
            (versions, ("champion", "serving", "0.750", "roc_auc", "482 kB", "2013-04-01 06:00")),
            (
                status,
                (
                    "ready",
                    "127.0.0.1:8000",
                    "revision 7",
                    "no such module [bold]",
                    "batch_size 64",
                    "last good  2",
                    "10.0 x and 7.5 x as fast",
                    "721 rows compared",
                    "2e-16",
                    "no: StackingClassifier is not [compiled]",
                ),
            ),
        ):
            assert ran.status == 0
            assert not ran.err
            for word in words:
                assert word in ran.out, ran.out
        assert "flights" in switchyard("status").out

    def test_json_is_what_the_server_said_and_nothing_else(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """A script that reads standard output would choke on a single word more."""
        for arguments, expected in (
            (("models",), [MODEL]),
            (("status",), [MODEL]),
            (("versions", "flights"), [VERSION]),
        ):
            assert json.loads(switchyard(*arguments, "--json").out)["items"] == expected
        assert json.loads(switchyard("status", "flights", "--json").out) == STATUS

    def test_all_pages_of_versions_are_read(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """Of a model with many versions the oldest would seem not to exist."""
        pages = iter([{"items": [VERSION], "next": "3"}, {"items": [{**VERSION, "version": "2"}], "next": None}])
        api.on("GET", "/ml/models/flights/versions", lambda _: (200, next(pages)))
        listed = json.loads(switchyard("versions", "flights", "--json").out)["items"]
        assert [each["version"] for each in listed] == ["3", "2"]
        assert api.asked[-1][1].endswith("?before=3")

    def test_a_list_that_may_be_short_says_so(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """With the registry down a model would seem deleted."""
        api.on("GET", "/ml/models", lambda _: (200, {"items": [MODEL], "unavailable": {"registry": "does not answer"}}))
        ran = switchyard("models")
        assert "There may be more" in ran.err
        assert "flights" in ran.out

    @pytest.mark.parametrize(
        ("state", "status"), [("ready", 0), ("degraded", 0), ("loading", 3), ("down", 3), ("unserved", 3)]
    )
    def test_status_of_a_model_can_be_waited_for(
        self, api: Api, switchyard: Callable[..., Ran], state: str, status: int
    ) -> None:
        """`until switchyard status flights` would never end, or end too early."""
        api.on("GET", "/ml/models/flights/status", lambda _: (200, {**STATUS, "status": state, "replicas": []}))
        ran = switchyard("status", "flights")
        assert (ran.status, "No replica is alive" in ran.out) == (status, True)


class TestErrors:
    def test_the_servers_own_words_and_status_one(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """A typing error in a name must read as one."""
        for arguments in (("versions", "fligths"), ("status", "x/../y"), ("promote", "fligths", "3", "--reason", "r")):
            ran = switchyard(*arguments)
            assert (ran.status, ran.out) == (1, "")
            assert ran.err == "ModelNotFound: There is no model. Known models: flights.\n"
        assert api.asked[1][1] == "/ml/models/x%2F..%2Fy/status"

    def test_nothing_there_is_status_three_with_the_way_out(self, switchyard: Callable[..., Ran]) -> None:
        """A script could not tell a server that starts from a wrong request."""
        port = free_port()
        ran = switchyard("models", "--url", f"http://127.0.0.1:{port}")
        assert ran.status == 3
        assert f"127.0.0.1:{port}" in ran.err
        assert "switchyard up" in ran.err
        assert switchyard("models", "--url", "127.0.0.1:1").status == 3

    def test_not_ready_is_status_three(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """The one refusal that goes away by itself."""
        refusal = {"error": "NotReady", "detail": "Not ready: nothing is loaded."}
        api.on("POST", "/ml/models/flights/predict", lambda _: (503, refusal, {"Retry-After": "2"}))
        ran = switchyard("predict", "flights", "-d", "carrier=UA", "-d", "distance=1")
        assert (ran.status, ran.err) == (3, "NotReady: Not ready: nothing is loaded.\n")

    def test_another_server_is_told_from_ours(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """A wrong port would end in a page of HTML, or in a traceback."""
        api.on("GET", "/ml/models", lambda _: (200, "<html>Jupyter</html>"))
        ran = switchyard("models")
        assert ran.status == 1
        assert "Jupyter" in ran.err
        assert "Is the address right?" in ran.err

    def test_wrong_arguments_are_status_two(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """They are to be corrected, not to be tried again."""
        assert switchyard("promote", "flights", "4").status == 2  # no reason
        assert switchyard("predict", "flights").status == 2
        assert switchyard("predict", "flights", "--data", "a=1", "--file", "x.csv").status == 2
        assert switchyard("predict", "flights", "--data", "a=1", "--output", "x.csv").status == 2
        assert switchyard("predict", "flights", "--file", "x.csv", "--batch-size", "0").status == 2

    def test_help_documents_the_statuses(self, switchyard: Callable[..., Ran]) -> None:
        """Nobody can use what nobody can find."""
        for command in ("models", "versions", "status", "promote", "predict"):
            assert "130 Ctrl-C" in switchyard(command, "--help").out


class TestPromote:
    def test_states_are_shown_as_they_pass(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """Loading a large model takes minutes, which one would spend before a still terminal."""
        states = iter(["checking", "preparing", "shifting", "succeeded"])
        api.on("POST", "/ml/models/flights/promote", lambda _: (202, change("requested")))
        api.on("GET", "/ml/changes/c-1", lambda _: (200, change(next(states))))
        ran = switchyard("promote", "flights", "4", "--reason", "better")
        assert ran.status == 0
        assert [
            line.strip() for line in ran.err.splitlines() if line.strip() in ("requested", "preparing", "succeeded")
        ] == [
            "requested",
            "preparing",
            "succeeded",
        ]
        assert "promote flights 3 -> 4: succeeded" in ran.out
        assert api.bodies("/ml/models/flights/promote") == [{"target": "4", "reason": "better"}]

    def test_a_rejected_change_shows_the_evidence(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """The reason is what one came for."""
        steps = [
            {"name": "preparing", "state": "failed", "evidence": {"reason": "no module named lightgbm", "empty": None}}
        ]
        api.on("POST", "/ml/models/flights/promote", lambda _: (202, change("checking")))
        api.on("GET", "/ml/changes/c-1", lambda _: (200, change("rejected", steps)))
        ran = switchyard("promote", "flights", "4", "--reason", "better")
        assert ran.status == 1
        assert "reason: no module named lightgbm" in ran.out
        assert "empty" not in ran.out
        as_json = switchyard("promote", "flights", "4", "--reason", "better", "--json")
        assert (as_json.status, json.loads(as_json.out)["steps"]) == (1, steps)

    def test_no_wait_and_dry_run_return_at_once(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """Whoever only wants to begin it would have to kill the command."""
        answers = iter(["requested", "planned", "rejected"])
        api.on("POST", "/ml/models/flights/promote", lambda _: (202, change(next(answers))))
        assert switchyard("promote", "flights", "4", "--reason", "r", "--no-wait").status == 0
        planned = switchyard("promote", "flights", "@new", "--reason", "r", "--dry-run", "--skip-gates")
        assert planned.status == 0
        assert "preparing: Load the target." in planned.out
        assert switchyard("promote", "flights", "4", "--reason", "r", "--dry-run").status == 1
        assert [method for method, *_ in api.asked] == ["POST", "POST", "POST"]
        assert api.bodies("/ml/models/flights/promote")[1] == {
            "target": "@new",
            "reason": "r",
            "dry_run": True,
            "skip_gates": True,
        }

    def test_a_server_that_restarts_meanwhile_is_asked_again(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """The change goes on; the command would say that it failed."""
        answers: Iterator[Answer] = iter(
            [(503, {"error": "NotReady", "detail": "starting"}), (200, change("succeeded"))]
        )
        api.on("POST", "/ml/models/flights/promote", lambda _: (202, change("requested")))
        api.on("GET", "/ml/changes/c-1", lambda _: next(answers))
        assert switchyard("promote", "flights", "4", "--reason", "r").status == 0

    def test_ctrl_c_ends_the_watching_and_says_so(self, api: Api) -> None:
        """One would think that the promotion was stopped."""
        api.on("POST", "/ml/models/flights/promote", lambda _: (202, change("preparing")))
        api.on("GET", "/ml/changes/c-1", lambda _: (200, change("preparing")))
        command = [str(BIN / "switchyard"), "promote", "flights", "4", "--reason", "r", "--url", api.url, "--json"]
        process = subprocess.Popen(
            command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until(lambda: len(api.asked) > 2, "the command to watch", 30)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert (process.returncode, out) == (130, "")
        assert "Stopped watching. The change goes on: c-1" in err
        assert "Traceback" not in err


class TestOneRecord:
    def test_values_get_the_types_of_the_signature(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """'007' is a text in one column and a number in another; a guess gets a 422."""
        arguments = ["-d", "carrier=007", "-d", "distance=2475", "-d", "seats=", "-d", "holiday=no"]
        ran = switchyard("predict", "flights", *arguments, "--threshold", "0.3", "--param", "depth=4", "--user", "N1")
        assert ran.status == 0
        assert "0.8000" in ran.out
        assert api.bodies() == [
            {
                "input_data": {"carrier": "007", "distance": 2475.0, "seats": None, "holiday": False},
                "parameters": {"threshold": 0.3, "depth": 4},
                "user_id": "N1",
            }
        ]
        assert json.loads(switchyard("predict", "flights", *arguments, "--json").out)["predictions"][0]["label"] == 1

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (["carrier=UA", "distance=far"], "distance: 'far' is no number"),
            (["carrier=UA", "distance=1", "seats=1.5"], "seats: '1.5' is no whole number"),
            (["carrier=UA", "distance=1", "holiday=maybe"], "neither true nor false"),
            (["carrier=UA", "distance=1", "gate=7"], "no column gate. Its columns: carrier, distance"),
            (["carrier=UA"], "requires distance"),
            (["carrier"], "'carrier' is not name=value"),
            (["carrier=UA", "distance=1e999"], "distance: '1e999' is too large"),
            (["carrier=UA", "distance=1", "seats=inf"], "seats: 'inf' is no whole number"),
            (["carrier=UA", "distance=1", f"seats={10**30}"], f"seats: '{10**30}' is beyond 64 bits; whole numbers go"),
            (["carrier=\udcff", "distance=1"], "carrier: '\\udcff' is no UTF-8 text"),
        ],
    )
    def test_what_cannot_be_sent_is_told_before(
        self, api: Api, switchyard: Callable[..., Ran], given: list[str], words: str
    ) -> None:
        """The text says which column and what would be right."""
        ran = switchyard("predict", "flights", *[part for each in given for part in ("-d", each)])
        assert ran.status == 2
        assert words in ran.err
        assert api.bodies() == []

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (str(10**30), "holds a whole number beyond 64 bits; they go from -2^63 to 2^64-1"),
            (f"[1, {10**30}]", "beyond 64 bits"),
            ("[" * 300 + "]" * 300, "is nested too deeply"),
        ],
    )
    def test_what_json_cannot_carry_is_told_of_a_model_without_signature(
        self, api: Api, switchyard: Callable[..., Ran], given: str, words: str
    ) -> None:
        """There a value is whatever it looks like, and one long key number ended in a traceback."""
        untyped = {**VERSION, "signature": None}
        api.on("GET", "/ml/models/flights/versions", lambda _: (200, {"items": [untyped], "next": None}))
        ran = switchyard("predict", "flights", "-d", f"key={given}")
        assert (ran.status, "key: " in ran.err, words in ran.err) == (2, True, True), ran.err
        assert api.bodies() == []
        assert switchyard("predict", "flights", "-d", "distance=1", "-d", f"key={given}", "--user", "x").status == 2

    def test_arguments_that_are_no_text_end_in_a_sentence(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """A name in another encoding than UTF-8, as old file systems have them."""
        ran = switchyard("predict", "flights", "-d", "carrier=UA", "-d", "distance=1", "--user", "\udcff")
        assert (ran.status, "cannot be sent as JSON" in ran.err) == (2, True), ran.err
        assert switchyard("predict", "fl\udcff", "-d", "carrier=UA").status == 1
        assert api.asked[-1][1] == "/ml/models/fl%FF/status"

    def test_a_version_is_asked_by_name(self, api: Api, switchyard: Callable[..., Ran]) -> None:
        """A candidate could not be tried before it serves."""
        answer = {
            "model_name": "flights",
            "model_version": "3",
            "id": "i-1",
            "outputs": [
                {"name": "label", "shape": [1], "datatype": "INT64", "data": [1]},
                {"name": "probabilities", "shape": [1, 2], "datatype": "FP64", "data": [0.2, 0.8]},
            ],
        }
        api.on("POST", "/v2/models/flights/versions/3/infer", lambda _: (200, answer))
        ran = switchyard("predict", "flights", "-d", "carrier=UA", "-d", "distance=1", "--version", "3", "--json")
        assert json.loads(ran.out)["predictions"] == [{"label": 1, "probabilities": {"0": 0.2, "1": 0.8}}]
        (asked,) = api.bodies("/v2/models/flights/versions/3/infer")
        assert asked["inputs"] == [
            {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["UA"]},
            {"name": "distance", "shape": [1], "datatype": "FP64", "data": [1.0]},
        ]


class TestFile:
    def test_rows_go_in_columns_batch_by_batch_and_come_back_in_order(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str], tmp_path: Path
    ) -> None:
        """Predictions beside the wrong rows are worse than none."""
        file = flights(*[f"UA,{index},,true" for index in range(990, 1015)])
        output = tmp_path / "out.jsonl"
        ran = switchyard(
            "predict", "flights", "-f", file, "-o", str(output), "--batch-size", "10", "--concurrency", "3"
        )
        assert ran.status == 0
        assert "25" in ran.out
        assert "p95" in ran.out
        assert sorted(len(body["input_data"]["distance"]) for body in api.bodies()) == [5, 10, 10]
        first = next(body for body in api.bodies() if body["input_data"]["distance"][0] == 990.0)
        assert first["input_data"]["seats"] == [None] * 10
        assert first["input_data"]["holiday"] == [True] * 10
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["line"] for row in rows] == list(range(2, 27))
        assert [row["label"] for row in rows] == [int(distance > 1000) for distance in range(990, 1015)]
        assert rows[12]["row"] == 2
        assert rows[12]["request_id"] != rows[0]["request_id"]

    def test_a_bad_row_is_named_by_its_line_and_the_others_go_on(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str], tmp_path: Path
    ) -> None:
        """One typing error among a million rows would cost all of them."""

        def answer(body: Json) -> Answer:
            carriers = body["input_data"]["carrier"]
            if "??" in carriers:
                path = f"input_data.carrier[{carriers.index('??')}]"
                fields = [{"path": path, "problem": "is odd", "expected": "a carrier"}]
                return 422, {"error": "ValidationFailed", "detail": "odd", "fields": fields}
            if "XX" in carriers:
                return 500, {"error": "model_error", "detail": "raised KeyError", "row": carriers.index("XX")}
            return 200, predicted(body)

        api.on("POST", "/ml/models/flights/predict", answer)
        file = flights("UA,2000,,", "UA,far,,", "??,1,,", "XX,1,,", "UA,1", "UA,5,,")
        output = tmp_path / "out.csv"
        ran = switchyard("predict", "flights", "-f", file, "-o", str(output))
        assert ran.status == 1
        for words in (
            "line 3: distance: 'far' is no number",
            "line 4: carrier: is odd, expected a carrier",
            "line 5: raised KeyError",
            "line 6: has 2 cells, the header has 4",
        ):
            assert words in ran.err, ran.err
        rows = list(csv.DictReader(output.read_text().splitlines()))
        assert [(row["line"], row["label"], bool(row["error"])) for row in rows] == [
            ("2", "1", False),
            ("3", "", True),
            ("4", "", True),
            ("5", "", True),
            ("6", "", True),
            ("7", "0", False),
        ]
        assert rows[0]["probability_1"] == "0.8"
        found = json.loads(switchyard("predict", "flights", "-f", file, "--json").out)
        assert found["summary"]["failed"] == 4
        assert [each["line"] for each in found["errors"]] == [3, 4, 5, 6]
        assert [each["line"] for each in found["predictions"]] == list(range(2, 8))

    def test_a_busy_server_is_asked_again_when_it_says(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str]
    ) -> None:
        """Under load a file would end half predicted; asked at once again, the load would only grow."""
        times: list[float] = []

        def answer(body: Json) -> Answer:
            times.append(time.monotonic())
            if len(times) < 3:
                return (429, {"error": "TooManyRequests", "detail": "busy"}, {"Retry-After": "0.2"})
            return 200, predicted(body)

        api.on("POST", "/ml/models/flights/predict", answer)
        ran = switchyard("predict", "flights", "-f", flights("UA,1,,"), "--json")
        assert ran.status == 0
        assert json.loads(ran.out)["summary"]["retried"] == 2
        assert min(times[1] - times[0], times[2] - times[1]) >= 0.2
        assert len({body["request_id"] for body in api.bodies()}) == 1

    def test_what_is_wrong_with_the_whole_file_is_told_before_anything_is_sent(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str], tmp_path: Path
    ) -> None:
        """Half a file of predictions, and then the news that a column is missing."""
        empty, binary, broken = tmp_path / "empty.csv", tmp_path / "binary.csv", tmp_path / "broken.json"
        damaged = tmp_path / "damaged.parquet"
        damaged.write_bytes(b"PAR1" + b"\xff" * 20 + b"\x10\0\0\0PAR1")
        empty.touch()
        binary.write_bytes(b"carrier,distance\n\xff\xfe,1\n")
        broken.write_text('[{"carrier": "UA",\n "distance": }]')
        for file, words in (
            (str(tmp_path / "none.csv"), "none.csv: cannot be read (No such file or directory)"),
            ("./none.csv", "./none.csv: cannot be read (No such file or directory)"),
            (f"{tmp_path}//none.csv", "//none.csv: cannot be read (No such file or directory)"),
            (str(damaged), "damaged.parquet: "),
            (str(tmp_path), "Is a directory"),
            (str(empty), "empty.csv: is empty"),
            (str(binary), "binary.csv: is no UTF-8 text"),
            (str(broken), "line 2: is no JSON"),
            (flights(), "has no rows"),
        ):
            ran = switchyard("predict", "flights", "-f", file)
            assert ran.status == 2, ran.err
            assert words in ran.err.replace("\n", ""), ran.err
        ran = switchyard("predict", "flights", "-f", flights("UA,1,7", header="carrier,distance,gate"))
        assert (ran.status, "no column 'gate'. Its columns: 'carrier', 'distance'" in ran.err) == (2, True)
        ran = switchyard("predict", "flights", "-f", flights("UA", header="carrier"))
        assert (ran.status, "column 'distance' is missing" in ran.err) == (2, True)
        ran = switchyard("predict", "flights", "-f", flights("UA,1", header="carrier,distance"), "-o", "out.txt")
        assert (ran.status, ".jsonl or .csv" in ran.err) == (2, True)
        assert api.bodies() == []

    def test_an_older_output_survives_a_refusal(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str], tmp_path: Path
    ) -> None:
        """Yesterday's predictions, gone for a model that was taken down."""
        output = tmp_path / "out.jsonl"
        output.write_text("kept\n")
        api.on("POST", "/ml/models/flights/predict", lambda _: (404, {"error": "ModelNotFound", "detail": "gone"}))
        assert switchyard("predict", "flights", "-f", flights("UA,1,,"), "-o", str(output)).status == 1
        assert output.read_text() == "kept\n"

    def test_columns_that_the_model_does_not_take_can_be_left_out(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str]
    ) -> None:
        """Files come with labels and keys, which every user would have to cut off."""
        file = flights("UA,1,7", header="carrier,distance,gate")
        assert switchyard("predict", "flights", "-f", file, "--ignore-unknown").status == 0
        assert api.bodies()[0]["input_data"] == {"carrier": ["UA"], "distance": [1.0]}

    @pytest.mark.parametrize("kind", ["list", "columns", "record", "lines", "parquet"])
    def test_other_formats_give_the_same_rows(
        self, api: Api, switchyard: Callable[..., Ran], tmp_path: Path, kind: str
    ) -> None:
        """Whoever has the data as JSON or Parquet would have to convert it by hand."""
        records: list[Json] = [
            {"carrier": "UA", "distance": 1500.0, "seats": 3},
            {"carrier": "AA", "distance": 5.0, "seats": None},
        ]
        path = tmp_path / "rows"  # told apart by its content
        if kind == "list":
            path.write_text(json.dumps(records, indent=2))
        elif kind == "columns":
            path.write_text(json.dumps({name: [row[name] for row in records] for name in records[0]}))
        elif kind == "record":
            records = records[:1]
            path.write_text(json.dumps(records[0], indent=2))
        elif kind == "lines":
            path.write_text("\n".join(map(json.dumps, records)))
        else:
            pd.DataFrame(records).to_parquet(path)
        ran = switchyard("predict", "flights", "-f", str(path), "--json")
        assert ran.status == 0, ran.err
        assert api.bodies()[0]["input_data"] == {name: [row[name] for row in records] for name in records[0]}

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_named_pipe_is_read_as_a_file_is(
        self, api: Api, switchyard: Callable[..., Ran], tmp_path: Path, kind: str
    ) -> None:
        """`--file <(zcat rows.csv.gz)` is how one predicts from what is not there as a file."""
        rows = pd.DataFrame({"carrier": ["UA", "AA"], "distance": [1500.0, 5.0]})
        content = rows.to_csv(index=False).encode() if kind == "csv" else rows.to_parquet()
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True)
        writer.start()
        ran = switchyard("predict", "flights", "-f", str(pipe), "--json")
        writer.join(30)
        assert ran.status == 0, ran.err
        assert [each["label"] for each in json.loads(ran.out)["predictions"]] == [1, 0]

    def test_what_cannot_be_read_to_its_end_is_the_files_fault(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str], tmp_path: Path
    ) -> None:
        """A bad byte far down, or a disk that fails, ended in a traceback with half of the rows sent."""
        path = Path(flights(*[f"UA,{index},," for index in range(3000)]))
        path.write_bytes(path.read_bytes() + b"\xff,1,,\n")
        ran = switchyard("predict", "flights", "-f", str(path), "-o", str(tmp_path / "out.csv"))
        assert (ran.status, "rows.csv: is no UTF-8 text (byte 0xff)" in ran.err) == (2, True), ran.err

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_infinite_numbers_are_sent_as_what_they_are(
        self, api: Api, switchyard: Callable[..., Ran], tmp_path: Path, kind: str
    ) -> None:
        """As missing values they would get the prediction of another row, and nobody would know."""
        rows = pd.DataFrame({"carrier": ["UA"] * 4, "distance": [float("inf"), float("-inf"), float("nan"), 1.0]})
        path = tmp_path / "rows"
        rows.to_csv(path, index=False) if kind == "csv" else rows.to_parquet(path)
        api.on(
            "POST", "/ml/models/flights/predict", lambda body: (200, predicted({"input_data": {"distance": [1] * 4}}))
        )
        ran = switchyard("predict", "flights", "-f", str(path), "--json")
        assert ran.status == 0, ran.err
        assert api.bodies()[0]["input_data"]["distance"] == ["Infinity", "-Infinity", None, 1.0]

    def test_infinite_numbers_are_refused_where_no_signature_says_that_they_are_numbers(
        self, api: Api, switchyard: Callable[..., Ran], tmp_path: Path
    ) -> None:
        """The server would take the text for a text; the row is bad, and the others go on."""
        untyped = {**VERSION, "signature": None}
        api.on("GET", "/ml/models/flights/versions", lambda _: (200, {"items": [untyped], "next": None}))
        pd.DataFrame({"distance": [float("inf"), 1500.0]}).to_parquet(tmp_path / "rows")
        ran = switchyard("predict", "flights", "-f", str(tmp_path / "rows"))
        assert (ran.status, "line 1: distance: is infinite" in ran.err) == (1, True), ran.err
        assert api.bodies()[0]["input_data"] == {"distance": [1500.0]}

    def test_a_whole_number_beyond_64_bits_costs_its_row_only(
        self, api: Api, switchyard: Callable[..., Ran], flights: Callable[..., str]
    ) -> None:
        """It ended everything in a traceback."""
        ran = switchyard("predict", "flights", "-f", flights("UA,1,7,", f"UA,1,{10**30},"))
        assert (ran.status, f"line 3: seats: '{10**30}' is beyond 64 bits" in ran.err) == (1, True), ran.err
        assert api.bodies()[0]["input_data"]["seats"] == [7]

    def test_a_pipe_can_be_read_and_json_stays_clean(self, api: Api) -> None:
        """`... | switchyard predict flights -f - --json | jq` is how scripts use it."""
        ran = subprocess.run(
            [str(BIN / "switchyard"), "predict", "flights", "--file", "-", "--json", "--url", api.url],
            input="carrier,distance\nUA,1500\nUA,5\n",
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        assert [each["label"] for each in json.loads(ran.stdout)["predictions"]] == [1, 0]

    def test_ctrl_c_keeps_what_was_written(self, api: Api, flights: Callable[..., str], tmp_path: Path) -> None:
        """An hour of predictions, gone for an impatient key."""
        release = threading.Event()

        def answer(body: Json) -> Answer:
            if body["input_data"]["distance"][0] >= 10:
                release.wait(60)
            return 200, predicted(body)

        api.on("POST", "/ml/models/flights/predict", answer)
        output = tmp_path / "out.jsonl"
        file = flights(*[f"UA,{index},," for index in range(40)])
        command = [str(BIN / "switchyard"), "predict", "flights", "-f", file, "-o", str(output), "--url", api.url]
        environment = {**clean_environment(), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*command, "--batch-size", "1", "--concurrency", "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: output.exists() and len(output.read_text().splitlines()) == 10, "ten rows", 30)
            os.kill(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            release.set()
            process.kill()
        assert process.returncode == 130, err
        assert len(output.read_text().splitlines()) == 10
        assert "Traceback" not in err
