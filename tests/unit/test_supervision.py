"""The parts of supervision that need no process: pauses, what is started and how, what the state file says."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from control_plane.settings import Settings
from control_plane.supervision.child import BackOff
from control_plane.supervision.logs import PARTS
from control_plane.supervision.processes import ProcessSpec, inherited_environment, stack
from control_plane.supervision.readiness import HasWritten
from control_plane.supervision.run import ReadyTask
from control_plane.supervision.state import Identity, PartState, StackState, identity_of, read_state, write_state
from tests.processes import wait_until


def specs(**settings: object) -> dict[str, ProcessSpec]:
    return {each.name: each for each in stack(Settings(**settings))}  # type: ignore[arg-type]


def test_pauses_double_up_to_half_a_minute() -> None:
    """A crash loop would either burn a core or leave a part away for ever."""
    back_off = BackOff()
    assert [back_off.pause(lived=1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_minute_of_life_is_a_new_start() -> None:
    """A part that crashes once a day would be away for longer each day."""
    back_off = BackOff()
    for _ in range(5):
        back_off.pause(lived=1)
    assert back_off.pause(lived=59) == 16
    assert [back_off.pause(lived=60), back_off.pause(lived=1)] == [0.5, 1]


def test_everything_is_started_on_defaults() -> None:
    """`switchyard up` would bring up half a system."""
    assert list(specs()) == ["data-plane", "control-plane", "prefect", "flows", "mlflow"]
    assert set(specs()) < set(PARTS)


@pytest.mark.parametrize("fails_first", [True, False])
@pytest.mark.parametrize(("exit_after", "status"), [(True, 130), (False, 0)])
def test_work_that_fails_by_ctrl_c_was_called_off(fails_first: bool, exit_after: bool, status: int) -> None:
    """Its servers are gone when it fails: a script would take a demo that was interrupted for one that went well."""
    called_off, failed = threading.Event(), threading.Event()

    def work() -> int:
        called_off.wait(30)
        failed.set()
        raise ConnectionError("the servers are gone")

    task = ReadyTask(work, exit_after=exit_after)
    task.begin()
    if not fails_first:
        task.abandon()
    called_off.set()
    failed.wait(30)
    wait_until(lambda: task._is_done, "the work to have failed", 30)
    if fails_first:
        task.abandon()
    assert task.outcome() == status


def test_work_that_is_done_keeps_its_status() -> None:
    """A signal that comes while everything ends must not hide how the demo went."""
    task = ReadyTask(lambda: 1, exit_after=True)
    task.begin()
    wait_until(lambda: task.wants_end, "the work to be done", 30)
    task.abandon()
    assert task.outcome() == 1


def test_servers_that_run_elsewhere_are_not_started() -> None:
    """A second, empty registry would stand beside the real one."""
    outside = specs(mlflow_tracking_uri="http://m.example", prefect_api_url="http://p.example/api")
    assert list(outside) == ["data-plane", "control-plane", "flows"]
    assert outside["flows"].environment["PREFECT_API_URL"] == "http://p.example/api"


def test_every_port_names_the_setting_that_chooses_it() -> None:
    """The message about a taken port would name a variable that does nothing."""
    for spec in specs().values():
        if spec.port:
            assert spec.port_setting is not None
            field = spec.port_setting.removeprefix("SWITCHYARD_").lower()
            moved = specs(**{field: 12345})[spec.name]
            assert moved.port == 12345
            assert ":12345" in str(moved.address)
            assert ":12345" in str(moved.readiness)


def test_nobody_reports_to_its_maker() -> None:
    """Telemetry is off: three products, three switches each."""
    for spec in specs().values():
        assert spec.environment["DO_NOT_TRACK"] == "1"
        assert spec.environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    for name in ("prefect", "flows", "control-plane"):
        assert specs()[name].environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert specs()[name].environment["PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS"] == "false"


def test_children_see_the_settings_that_we_saw(tmp_path: Path) -> None:
    """A child in another folder would use another database."""
    for spec in specs(data_folder=tmp_path / "x", workers=3, database_url="sqlite:////y.db").values():
        assert spec.environment["SWITCHYARD_DATA_FOLDER"] == str(tmp_path / "x")
        assert spec.environment["SWITCHYARD_WORKERS"] == "3"
        assert spec.environment["SWITCHYARD_DATABASE_URL"] == "sqlite:////y.db"


def test_home_folder_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ~ in the data folder the children would write to a folder called ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert specs(data_folder="~/sy")["data-plane"].environment["SWITCHYARD_DATA_FOLDER"] == str(tmp_path / "sy")


def test_prefect_and_its_clients_share_the_password() -> None:
    """The runner would be refused by its own server."""
    locked = specs(prefect_auth_string="me:secret")
    assert locked["prefect"].environment["PREFECT_SERVER_API_AUTH_STRING"] == "me:secret"
    assert locked["flows"].environment["PREFECT_API_AUTH_STRING"] == "me:secret"
    assert not any("me:secret" in each for spec in locked.values() for each in spec.command)


def test_profile_of_the_person_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect refuses to start on a profile that our own PREFECT_HOME does not have."""
    monkeypatch.setenv("PREFECT_PROFILE", "work")
    assert "PREFECT_PROFILE" not in inherited_environment()


def test_prefect_takes_every_variable_that_we_set(tmp_path: Path) -> None:
    """A name that Prefect does not know is ignored without a word, and the default stays."""
    (tmp_path / "prefect").mkdir()
    environment = specs(data_folder=tmp_path, prefect_auth_string="me:secret")["prefect"].environment
    program = """
from prefect.settings import get_current_settings
now = get_current_settings()
assert now.home.parent.name == HOME, now.home
assert now.server.analytics_enabled is False
assert now.telemetry.enable_resource_metrics is False
assert now.server.ui.show_promotional_content is False
assert now.server.services.db_vacuum.enabled == {"events", "flow_runs"}
assert now.server.concurrency.lease_storage.endswith("filesystem")
assert now.flows.heartbeat_frequency == 30
assert now.server.api.auth_string is not None and now.api.auth_string is not None
assert now.logging.colors is False and now.cli.colors is False
""".replace("HOME", repr(tmp_path.name))
    subprocess.run([sys.executable, "-c", program], env=inherited_environment() | environment, check=True, timeout=60)


def test_old_ready_file_does_not_count(tmp_path: Path) -> None:
    """A part would be called ready because an earlier one was."""
    file = tmp_path / "flows.ready"
    mine = HasWritten(file)
    assert not mine.is_ready(os.getpgid(0))
    for other in ("1", "", "nonsense", "99999999999999999999"):
        file.write_text(other)
        assert not mine.is_ready(os.getpgid(0))
    file.write_text(str(os.getpid()))
    assert mine.is_ready(os.getpgid(0))
    assert not mine.is_ready(os.getpgid(0) + 1)


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    """`switchyard doctor` would not know what runs."""
    (tmp_path / "run").mkdir()
    part = PartState("mlflow", "MLflow server", "ready", "http://x", "/l", 7, 1.5, 2.5, 0, None)
    state = StackState("id", identity_of(os.getpid()), 8, 3.5, [part])
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert state.is_alive


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"supervisor": 1}', '{"supervisor": {"pid": 1}}'])
def test_unreadable_state_is_no_state(tmp_path: Path, content: str | None) -> None:
    """A file cut off by a power failure would keep `switchyard up` from ever starting again."""
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "stack.json").write_text(content)
    assert read_state(tmp_path) is None


def test_reused_pid_is_somebody_else() -> None:
    """After a reboot an unrelated process would look like our supervisor, or be killed as a leftover."""
    me = identity_of(os.getpid())
    assert me.is_alive
    assert not Identity(me.pid, me.started_at - 3600).is_alive
