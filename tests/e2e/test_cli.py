"""The command line: what a user types when nothing runs, and what it says when something is wrong."""

import json
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest

from control_plane.storage.setup import create_database
from tests.processes import BIN, PYTHON, answers, clean_environment, free_port, running, wait_until


def switchyard(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command, in the current folder."""
    environment = {**clean_environment(), "COLUMNS": "240", "NO_COLOR": "1"}
    environment |= {f"SWITCHYARD_{name.upper()}": value for name, value in settings.items()}
    command = [str(BIN / "switchyard"), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def refused(ran: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One clear text, the right status, no traceback."""
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    for each in words:
        assert each in ran.stderr, ran.stderr


def test_help_and_version() -> None:
    """The first thing typed."""
    ran = switchyard("--help")
    assert ran.returncode == 0
    for command in (
        "up",
        "demo",
        "models",
        "versions",
        "status",
        "promote",
        "predict",
        "logs",
        "doctor",
        "settings",
        "database",
    ):
        assert command in ran.stdout
    assert switchyard("version").stdout.startswith("switchyard 0.")
    refused(switchyard("upp"), 2, "No such command 'upp'")


def test_settings_lists_all_with_origin() -> None:
    """Which value holds, and where it comes from."""
    Path(".env").write_text("SWITCHYARD_WORKERS=3\n")
    rows = {row["variable"]: row for row in json.loads(switchyard("settings", "--json", mlflow_port="5555").stdout)}
    assert (rows["SWITCHYARD_WORKERS"]["value"], rows["SWITCHYARD_WORKERS"]["origin"]) == (
        "3",
        str(Path(".env").absolute()),
    )
    assert rows["SWITCHYARD_MLFLOW_PORT"]["origin"] == "environment"
    table = switchyard("settings").stdout
    assert "SWITCHYARD_DATA_FOLDER" in table
    assert ".switchyard" in table


def test_wrong_settings_stop_every_command_with_status_2() -> None:
    """A value that was meant and not taken would be worse than an error."""
    for command in ("up", "settings", "doctor"):
        refused(switchyard(command, workers="many"), 2, "SWITCHYARD_WORKERS='many' (from environment)", "whole number")
    refused(switchyard("settings", data_plane_prot="1"), 2, "did you mean SWITCHYARD_DATA_PLANE_PORT?")


def test_database_commands_never_create_by_accident() -> None:
    """The way out that every message names must work as it says."""
    file = Path("house.db").absolute()
    url = f"sqlite:///{file}"
    refused(switchyard("database", "status", database_url=url), 1, "DatabaseMissing", "--create")
    refused(switchyard("database", "upgrade", database_url=url), 1, "DatabaseMissing")
    assert not file.exists()
    assert switchyard("database", "upgrade", "--create", database_url=url).returncode == 0
    assert "up to date" in switchyard("database", "status", database_url=url).stdout
    refused(switchyard("database", "downgrade", "base", database_url=url), 130)
    assert switchyard("database", "downgrade", "base", "--yes", database_url=url).returncode == 0
    refused(switchyard("database", "status", database_url=url), 1, "DatabaseEmpty")


def _missing(file: Path) -> None:
    assert not file.exists()


def _empty(file: Path) -> None:
    file.touch()


def _damaged(file: Path) -> None:
    file.write_text("no database " * 100)


def _newer(file: Path) -> None:
    create_database(f"sqlite:///{file}", 5)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


@pytest.mark.parametrize(
    ("make", "error"),
    [(_missing, "DatabaseMissing"), (_empty, "DatabaseEmpty"), (_damaged, "DatabaseDamaged"), (_newer, "SchemaNewer")],
)
def test_up_starts_nothing_on_a_database_it_cannot_use(make: object, error: str) -> None:
    """Better no start than one that looks well and serves nothing."""
    file = Path("house.db").absolute()
    assert callable(make)
    make(file)
    before = file.read_bytes() if file.exists() else None
    ports = {f"{name}_port": str(free_port()) for name in ("data_plane", "control_plane", "prefect", "mlflow")}
    refused(switchyard("up", database_url=f"sqlite:///{file}", **ports), 1, error)
    assert (file.read_bytes() if file.exists() else None) == before
    assert not list(Path(".switchyard", "mlflow").iterdir())


def test_up_waits_for_a_lock_no_longer_than_it_was_told() -> None:
    """A backup tool that holds the database must lead to a message, not to a start that hangs."""
    Path(".switchyard").mkdir()
    create_database(f"sqlite:///{Path('.switchyard', 'switchyard.db').absolute()}", 5)
    Path(".switchyard", "installation.json").write_text("{}")
    ports = {f"{name}_port": str(free_port()) for name in ("data_plane", "control_plane", "prefect", "mlflow")}
    holder = sqlite3.connect(Path(".switchyard", "switchyard.db"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ran = switchyard("up", database_timeout="0.3", **ports)
    holder.close()
    refused(ran, 1, "DatabaseLocked", "for more than 0.3 s")


def test_up_names_a_folder_it_cannot_write() -> None:
    """With the setting that would put it elsewhere."""
    Path("file").write_text("in the way")
    refused(switchyard("up", data_folder="file/data"), 1, "FolderNotWritable", "SWITCHYARD_DATA_FOLDER")


def test_doctor_before_the_first_start() -> None:
    """A clean machine is not a sick one."""
    ran = switchyard(
        "doctor",
        "--json",
        **{f"{name}_port": str(free_port()) for name in ("data_plane", "control_plane", "prefect", "mlflow")},
    )
    findings = {each["subject"]: each for each in json.loads(ran.stdout)}
    assert ran.returncode == 0, findings
    assert findings["ports"]["status"] == "ok"
    assert findings["registry"] == {
        "subject": "registry",
        "status": "note",
        "found": "not running",
        "advice": "Start it: switchyard up",
    }
    assert not Path(".switchyard").exists()


def test_doctor_finds_what_is_wrong_and_says_what_to_do() -> None:
    """Each finding with its way out, and a status that scripts can use."""
    create_database(f"sqlite:///{Path('house.db').absolute()}", 5)
    holder = sqlite3.connect("house.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    settings = {"database_timeout": "0.3", "database_url": f"sqlite:///{Path('house.db').absolute()}"}
    ran = switchyard(
        "doctor", "--json", mlflow_tracking_uri="http://127.0.0.1:1", min_free_disk_mb="999999999", **settings
    )
    holder.close()
    findings = {each["subject"]: each for each in json.loads(ran.stdout)}
    assert ran.returncode == 1
    assert "write lock" in findings["database"]["found"]
    assert "process" in findings["database"]["advice"]
    assert "connection refused" in findings["registry"]["found"]
    assert "MB free, wanted 999999999 MB" in findings["data folder"]["found"]


def test_logs_of_nothing_and_of_no_such_part() -> None:
    """A typo is named; no logs yet is no error."""
    refused(switchyard("logs", "dataplane"), 1, "UnknownPart", "data-plane")
    assert switchyard("logs").returncode == 0


def test_a_proxy_is_not_asked_for_our_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In many companies HTTP_PROXY is set for everybody: the flow runner died of it, and with it every start."""
    with (
        socket.socket() as closed,
        running([PYTHON, "-m", "http.server", str(port := free_port()), "--bind", "127.0.0.1"], log=Path("server.txt")),
    ):
        closed.bind(("127.0.0.1", 0))
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), "a server", 30)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        ran = switchyard("doctor", "--json", prefect_api_url=f"http://127.0.0.1:{port}")
    found = {each["subject"]: each["found"] for each in json.loads(ran.stdout)}["Prefect"]
    assert "answers 404" in found  # itself, not the proxy


@pytest.mark.parametrize("folder", ["[bold]x", "[", "[/]"])
def test_brackets_in_names_are_shown_as_they_are(folder: str) -> None:
    """They are markup to the library that prints: a folder's name was cut, or ended in a traceback."""
    home = Path(folder).absolute()
    refused(switchyard("database", "status", data_folder=str(home)), 1, f"{home}/switchyard.db")
    ran = switchyard("doctor", data_folder=str(home))
    assert f"{home}" in ran.stdout, ran.stdout + ran.stderr
    assert str(home) in switchyard("settings", data_folder=str(home)).stdout
