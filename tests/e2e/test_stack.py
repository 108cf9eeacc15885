"""The whole house on the locked versions: this is what breaks when a dependency moves."""

import json
import re
import subprocess
import uuid
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.browser import browser
from tests.e2e.conftest import Stack
from tests.mlflow_person import Person
from tests.processes import BIN, PYTHON, ROOT, running, wait_until


def flow_runs(prefect: str, *states: str) -> list[dict[str, object]]:
    """The runs of the housekeeping deployment, in any of these states."""
    wanted = {"flow_runs": {"state": {"type": {"any_": list(states)}}}}
    runs: list[dict[str, object]] = httpx.post(f"{prefect}/api/flow_runs/filter", json=wanted, timeout=30).json()
    return runs


def create_run(prefect: str, deployment: str, body: dict[str, object]) -> httpx.Response:
    """Ask for a run as Prefect's own client does: 503 means that its SQLite was busy, and to ask again."""
    body = {**body, "idempotency_key": str(uuid.uuid4())}
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(httpx.post(f"{prefect}/api/deployments/{deployment}/create_flow_run", json=body, timeout=30))
        return answers[-1].status_code != 503

    wait_until(answered, "Prefect to take a run", 60)
    return answers[-1]


def test_the_table_names_every_address_and_each_answers(stack: Stack) -> None:
    """A new user goes from the terminal to the browser."""
    shown = stack.output.read_text()
    for address in (stack.data_plane, stack.control_plane, stack.prefect, stack.mlflow):
        assert address in shown
        assert (
            httpx.get(
                address + ("/health/live" if address == stack.data_plane else ""), timeout=30, follow_redirects=True
            ).status_code
            == 200
        )
    assert httpx.get(f"{stack.data_plane}/health/ready", timeout=30).json()["status"] == "ready"
    ready = httpx.get(f"{stack.control_plane}/health/ready", timeout=30).json()
    assert ready["status"] == "ready", ready
    assert httpx.get(f"{stack.control_plane}/ml/models", timeout=30).json()["unavailable"] == {}


def test_a_model_that_is_not_there_is_said_so_on_both_addresses(stack: Stack) -> None:
    """Predicting before anything was promoted is the first thing people try; other tests may have by now."""
    for address in (stack.data_plane, stack.control_plane):
        answer = httpx.post(f"{address}/ml/models/not-there/predict", json={"input_data": {"temp": 41.0}}, timeout=30)
        assert (answer.status_code, answer.json()["error"]) == (404, "ModelNotFound"), answer.text
        assert "not-there" not in answer.json()["known"]


def test_a_registered_model_appears_in_the_control_plane(stack: Stack) -> None:
    """The contract with a training pipeline is a version in MLflow, and nothing else."""
    person = Person(
        stack.mlflow, f"sqlite:///{stack.home / 'mlflow' / 'mlflow.db'}", stack.home / "mlflow" / "artifacts"
    )
    version = person.register(metrics={"accuracy": 0.9})
    person.client.set_registered_model_alias(person.model_id, "champion", version)
    listed = httpx.get(f"{stack.control_plane}/ml/models/{person.model_id}/versions", timeout=30).json()["items"]
    assert [(each["version"], each["aliases"], each["metrics"]) for each in listed] == [
        ("1", ["champion"], {"accuracy": 0.9})
    ]


def test_prefect_schedules_by_itself_and_the_runner_runs(stack: Stack) -> None:
    """With a wrong SQLAlchemy Prefect looks healthy and never schedules anything."""
    wait_until(lambda: flow_runs(stack.prefect, "SCHEDULED"), "a scheduled run to appear by itself", 180)
    deployment = httpx.get(f"{stack.prefect}/api/deployments/name/housekeeping/housekeeping", timeout=30).json()
    started = create_run(stack.prefect, deployment["id"], {})
    assert started.status_code == 201, started.text

    def ended() -> object:
        run = httpx.get(f"{stack.prefect}/api/flow_runs/{started.json()['id']}", timeout=30).json()
        return run["state"] if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = wait_until(ended, "the housekeeping run to end", 300)
    assert isinstance(state, dict)
    assert state["type"] == "COMPLETED", state
    found = httpx.post(f"{stack.prefect}/api/artifacts/filter", json={}, timeout=30).json()
    assert {"kept-versions", "moved-aliases"} <= {each["key"] for each in found}


def test_the_form_refuses_what_cannot_be(stack: Stack) -> None:
    """Prefect checks the form before it starts anything."""
    deployment = httpx.get(f"{stack.prefect}/api/deployments/name/housekeeping/housekeeping", timeout=30).json()
    wrong: dict[str, object] = {"parameters": {"request": {"unused_for_hours": 0}}}
    answer = create_run(stack.prefect, deployment["id"], wrong)
    assert answer.status_code == 409
    assert "unused_for_hours" in answer.text


def test_prefect_yaml_deploys_and_a_worker_runs_it(
    tmp_path: Path, stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The way to many hosts: work pools and workers from prefect.yaml, on the same locked versions."""
    from tests.processes import answers, free_port

    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    prefect = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    environment = {**stack.environment, **prefect, "DO_NOT_TRACK": "1", "NO_COLOR": "1"}

    def call(*arguments: str) -> str:
        ran = subprocess.run(
            [str(BIN / "prefect"), "--no-prompt", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            cwd=ROOT,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    server = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    worker = [str(BIN / "prefect"), "worker", "start", "--pool", "switchyard"]
    with running(server, log=tmp_path / "server.log", environment=environment):
        wait_until(lambda: answers(f"{api}/health"), "a Prefect server of its own", 180)
        call("work-pool", "create", "switchyard", "--type", "process")
        call("deploy", "--all")
        with running(worker, log=tmp_path / "worker.log", environment=environment, cwd=tmp_path):
            call("deployment", "run", "housekeeping/housekeeping")
            wait_until(lambda: flow_runs(api.removesuffix("/api"), "COMPLETED"), "the worker to complete a run", 240)
        assert flow_runs(api.removesuffix("/api"), "SCHEDULED"), "the schedule of prefect.yaml made no run"


def test_evidently_imports_and_reports() -> None:
    """With a newer pandas it does not even import."""
    script = """
import pandas as pd
from evidently import Dataset, Report
from evidently.presets import DataDriftPreset
before = pd.DataFrame({"temp": [float(each) for each in range(200)]})
after = before + 150.0
snapshot = Report([DataDriftPreset()]).run(Dataset.from_pandas(after), Dataset.from_pandas(before))
print(snapshot.dict()["metrics"][0]["value"]["share"])
assert "<html" in snapshot.get_html_str(as_iframe=False)
"""
    ran = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, timeout=180, env={"DO_NOT_TRACK": "1"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip() == "1.0"


def _note(failures: list[str], error: object) -> None:
    failures.append(str(error))


def test_the_pages_work_in_a_browser_without_the_internet(stack: Stack) -> None:
    """Both web pages, and our documentation page, must load everything they need from here."""
    pages = {
        f"{stack.prefect}/v2/deployments": "housekeeping",
        f"{stack.mlflow}/#/models": "Registered Models",
        f"{stack.control_plane}/docs": "/ml/models/{model_id}/versions",
    }
    with browser() as chromium:
        for url, words in pages.items():
            page = chromium.new_page()
            failures: list[str] = []
            page.on("pageerror", partial(_note, failures))
            page.goto(url)
            page.get_by_text(words).first.wait_for(timeout=60_000)
            assert failures == [], url
            page.close()


def test_doctor_finds_a_running_house_well(stack: Stack) -> None:
    """What one runs first when something is odd must not itself be odd."""
    ran = subprocess.run(
        stack.run("doctor", "--json"), env=stack.environment, capture_output=True, text=True, timeout=120
    )
    findings = {each["subject"]: each for each in json.loads(ran.stdout)}
    assert ran.returncode == 0, findings
    assert {"versions", "data folder", "database", "registry", "Prefect", "data plane", "control plane"} <= set(
        findings
    )
    assert {each["status"] for each in findings.values()} == {"ok"}


def test_doctor_in_a_shell_with_other_settings_says_so(stack: Stack) -> None:
    """The next day's terminal lacks the variables of the first; the ports seem dead, and nothing is."""
    folder = {"SWITCHYARD_DATA_FOLDER": str(stack.home)}
    environment = {
        name: value for name, value in stack.environment.items() if not name.startswith("SWITCHYARD_")
    } | folder
    ran = subprocess.run(stack.run("doctor", "--json"), env=environment, capture_output=True, text=True, timeout=120)
    findings = {each["subject"]: each for each in json.loads(ran.stdout)}
    assert ran.returncode == 1
    assert f"data plane at {stack.data_plane} and not http://127.0.0.1:8000" in findings["settings"]["found"]
    assert {each["status"] for subject, each in findings.items() if subject != "settings"} == {"ok"}


def test_logs_are_json_by_part_and_readable_by_command(stack: Stack) -> None:
    """Everything that happened, in one stream, each line with its part."""
    identifier = "5f0c1a52-9d55-4b43-8a3d-0d6a6e0a7b11"
    httpx.get(f"{stack.control_plane}/nowhere", headers={"X-Request-ID": identifier}, timeout=30)
    file = stack.home / "logs" / "control-plane.log"
    wait_until(lambda: identifier in file.read_text(), "the request to be logged", 30)
    parts = {path.stem for path in (stack.home / "logs").glob("*.log")}
    assert {"data-plane", "control-plane", "prefect", "flows", "mlflow", "supervisor"} <= parts
    for path in (stack.home / "logs").glob("*.log"):
        for line in path.read_text().splitlines():
            assert {"time", "level", "part", "event"} <= set(json.loads(line)), line
    ran = subprocess.run(
        stack.run("logs", "control-plane"), env=stack.environment, capture_output=True, text=True, timeout=60
    )
    assert re.search(rf"control-plane.*request.*{identifier}|{identifier}", ran.stdout), ran.stdout


def test_a_second_start_on_the_same_folder_is_refused(stack: Stack) -> None:
    """Two supervisors would restart each other's children."""
    ran = subprocess.run(stack.run("up"), env=stack.environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert f"process {stack.pid}" in ran.stderr


def test_a_port_that_is_taken_is_named_with_owner_and_setting(stack: Stack, tmp_path: Path) -> None:
    """The most common reason why nothing starts."""
    environment = {**stack.environment, "SWITCHYARD_DATA_FOLDER": str(tmp_path / "other")}
    ran = subprocess.run(stack.run("up"), env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "SWITCHYARD_DATA_PLANE_PORT" in ran.stderr
    assert re.search(r"taken by python\S* \(process \d+", ran.stderr), ran.stderr
