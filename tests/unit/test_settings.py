"""Settings: each from its place, each wrong one named with what would be right."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from control_plane.errors import SettingsInvalid
from control_plane.settings import Settings, environment_of, explain_settings, load_settings


def problems() -> str:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings()
    return caught.value.detail


def test_defaults_bind_to_this_machine_only() -> None:
    """Nobody else must be able to reach a server that was just tried out."""
    settings = load_settings()
    assert settings.host == "127.0.0.1"
    assert settings.resolved_database_url == f"sqlite:///{Path.cwd() / '.switchyard' / 'switchyard.db'}"
    ports = (settings.data_plane_port, settings.control_plane_port, settings.prefect_port, settings.mlflow_port)
    assert ports == (8000, 8080, 4200, 5000)


def test_environment_wins_over_the_file_and_each_says_where_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wonders why a port is what it is must find the place."""
    Path(".env").write_text("SWITCHYARD_WORKERS=3\nSWITCHYARD_MLFLOW_PORT=5555\nUNRELATED=1\n")
    monkeypatch.setenv("SWITCHYARD_MLFLOW_PORT", "6666")
    settings = load_settings()
    assert (settings.workers, settings.mlflow_port) == (3, 6666)
    origins = {row.variable: row.origin for row in explain_settings(settings)}
    assert origins["SWITCHYARD_WORKERS"] == str(Path(".env").absolute())
    assert origins["SWITCHYARD_MLFLOW_PORT"] == "environment"
    assert origins["SWITCHYARD_PREFECT_PORT"] == "default"


def test_every_setting_is_documented() -> None:
    """An undocumented setting is one nobody can use."""
    for row in explain_settings(load_settings()):
        assert len(row.description) > 20, row.variable
        assert row.description.endswith((".", "]", "]."))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WORKERS", "zero", "a whole number of at least 1 and of at most 256"),
        ("WORKERS", "0", "of at least 1"),
        ("MLFLOW_PORT", "80", "of at least 1024"),
        ("DATABASE_TIMEOUT", "-1", "a number above 0"),
        ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
        ("ALLOWED_HOSTS", "a,b", 'a JSON list of texts, such as ["a", "b"]'),
    ],
)
def test_a_wrong_value_names_variable_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    """The three things one needs to mend it, in one line."""
    monkeypatch.setenv(f"SWITCHYARD_{name}", value)
    said = problems()
    assert f"SWITCHYARD_{name}='{value}' (from environment)" in said
    assert allowed in said


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mending one to be told of the next is tedious."""
    monkeypatch.setenv("SWITCHYARD_WORKERS", "x")
    monkeypatch.setenv("SWITCHYARD_MLFLOW_PORT", "y")
    monkeypatch.setenv("SWITCHYARD_PROT", "1")
    assert len(problems().splitlines()) == 3


def test_an_unknown_setting_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting that is silently ignored costs an afternoon."""
    monkeypatch.setenv("SWITCHYARD_DATA_PLANE_PROT", "8001")
    assert "did you mean SWITCHYARD_DATA_PLANE_PORT?" in problems()


def test_an_unknown_setting_in_the_file_is_refused_too() -> None:
    """The file is where they are misspelt."""
    Path(".env").write_text("switchyard_nonsense=1\n")
    said = problems()
    assert "SWITCHYARD_NONSENSE" in said
    assert ".env" in said


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """`switchyard settings` ends up in tickets."""
    monkeypatch.setenv("SWITCHYARD_DATABASE_URL", "postgresql://ada:hunter2@db/x")
    monkeypatch.setenv("SWITCHYARD_PREFECT_AUTH_STRING", "admin:hunter3")
    settings = load_settings()
    shown = str(explain_settings(settings)) + repr(settings)
    assert "hunter" not in shown
    assert "postgresql://ada:***@db/x" in shown


def test_a_child_sees_what_its_parent_saw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process started elsewhere must work on the same folder with the same values."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = Settings(
        data_folder=Path("relative"),
        artifact_folder=Path("~/models"),
        allowed_hosts=["a", "b"],
        database_url=SecretStr("sqlite:///y.db"),
        workers=5,
    )
    passed, home = environment_of(settings), settings.home
    assert passed["SWITCHYARD_DATA_FOLDER"] == str(Path.cwd() / "relative")
    assert passed["SWITCHYARD_ARTIFACT_FOLDER"] == str(tmp_path / "home" / "models")
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    seen = load_settings()
    assert seen.home == home
    assert seen.resolved_database_url == f"sqlite:///{tmp_path / 'y.db'}"
    assert (seen.allowed_hosts, seen.workers) == (["a", "b"], 5)


def test_what_was_left_to_its_default_is_not_the_childs_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's processes once worked on the user's own registry, database and artifacts, named in the environment."""
    settings = Settings(data_folder=Path("demo"))
    for name in ("DATABASE_URL", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "ARTIFACT_FOLDER"):
        monkeypatch.setenv(f"SWITCHYARD_{name}", "http://the.users.own")
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    child = load_settings()
    for name in (
        "resolved_database_url",
        "resolved_mlflow_uri",
        "resolved_prefect_api_url",
        "resolved_artifact_folder",
    ):
        assert getattr(child, name) == getattr(settings, name), name


def test_an_empty_value_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty host would open every server to the network; an empty MLflow address would start none and use none."""
    Path(".env").write_text("SWITCHYARD_HOST=\nSWITCHYARD_MLFLOW_TRACKING_URI=\n")
    monkeypatch.setenv("SWITCHYARD_DATA_FOLDER", "")
    settings = load_settings()
    assert (settings.host, settings.mlflow_tracking_uri, settings.data_folder) == (
        "127.0.0.1",
        None,
        Path(".switchyard"),
    )
    assert {row.origin for row in explain_settings(settings)} == {"default"}


@pytest.mark.parametrize("host", ["::1", "::"])
def test_an_ipv6_host_makes_addresses_that_can_be_asked(host: str) -> None:
    """Without brackets no server would ever seem ready."""
    assert Settings(host=host).control_plane_url == "http://[::1]:8080"


def test_a_file_that_is_no_text_is_named() -> None:
    """Saved by an editor that writes UTF-16."""
    Path(".env").write_bytes(b"SWITCHYARD_WORKERS=\xff\xfe\n")
    assert "UTF-8" in problems()


def test_secrets_in_other_addresses_are_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow and Prefect may stand behind a login, and a password may stand behind a question mark."""
    monkeypatch.setenv("SWITCHYARD_MLFLOW_TRACKING_URI", "http://ada:hunter2@mlflow.example:5000")
    monkeypatch.setenv("SWITCHYARD_DATABASE_URL", "postgresql://db/x?user=ada&password=hunter2")
    assert "hunter" not in str(explain_settings(load_settings()))
