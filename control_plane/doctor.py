"""`switchyard doctor`: looks at everything an installation depends on, and says what to do."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import httpx
import psutil
from packaging.requirements import Requirement

from control_plane.services import Services, build_services
from control_plane.settings import Settings
from control_plane.supervision.ports import check_ports
from control_plane.supervision.processes import stack
from control_plane.supervision.state import read_state
from serving.errors import DatabaseLocked, SwitchyardError
from serving.logs import mask

# Above what a server of ours takes to find out that something it needs hangs.
_SERVER_SECONDS = 15.0

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    status: Status
    found: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, one finding after the other; never raises for what it finds wrong."""
    yield _versions()
    yield from _folders(settings)
    try:
        services = build_services(settings)
    except SwitchyardError as error:
        yield _wrong("database", error)
        return
    try:
        yield _database(services)
        yield from _servers(settings, services)
    finally:
        services.close()


def _versions() -> Finding:
    """Whether what is installed is what this version was proven with; a moved dependency breaks it in strange ways."""
    wrong = [problem for each in requires("switchyard") or [] if (problem := _unmet(Requirement(each)))]
    if wrong:
        return Finding("versions", "wrong", "; ".join(wrong), "Install from the lock: make clean, then make up")
    return Finding("versions", "ok", f"switchyard {version('switchyard')}, every dependency within its proven range")


def _unmet(needed: Requirement) -> str | None:
    if needed.marker and not needed.marker.evaluate({"extra": ""}):
        return None
    try:
        found = version(needed.name)
    except PackageNotFoundError:
        return f"{needed.name} is not installed"
    return (
        None
        if needed.specifier.contains(found, prereleases=True)
        else f"{needed.name} is {found}, needed is {needed.specifier}"
    )


def _folders(settings: Settings) -> Iterator[Finding]:
    places = [("data folder", settings.home, "SWITCHYARD_DATA_FOLDER")]
    if not settings.resolved_artifact_folder.is_relative_to(settings.home):
        places.append(("artifact folder", settings.resolved_artifact_folder, "SWITCHYARD_ARTIFACT_FOLDER"))
    for subject, folder, setting in places:
        yield _folder(subject, folder, setting, settings.min_free_disk_mb)


def _folder(subject: str, folder: Path, setting: str, needed_mb: int) -> Finding:
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(
            subject, "wrong", f"{folder} cannot be written to", f"Check the rights of {nearest}, or set {setting}."
        )
    free = shutil.disk_usage(nearest).free // 1_000_000
    if free < needed_mb:
        advice = f"Free some space, or set {setting} to a larger disk."
        return Finding(subject, "wrong", f"{folder}: {free} MB free, wanted {needed_mb} MB", advice)
    state = "" if nearest == folder else " (will be made by 'switchyard up')"
    return Finding(subject, "ok", f"{folder}{state}, {free / 1000:,.0f} GB free")


def _database(services: Services) -> Finding:
    database = services.database
    if services.settings.database_url is None and not services.settings.home.exists():
        return Finding("database", "note", f"{database.name} will be made by the first 'switchyard up'")
    try:
        database.check()
        with database.writing():
            pass  # the write lock can be had
    except DatabaseLocked as error:
        return Finding("database", "wrong", error.detail, f"It is open in {_who_has_open(Path(database.name))}.")
    except SwitchyardError as error:
        return _wrong("database", error)
    return Finding("database", "ok", f"{database.name}, schema {database.schema}, writable")


def _who_has_open(file: Path) -> str:
    """The processes that have a file open, in words."""
    holders = []
    for process in psutil.process_iter(["pid", "name"]):
        try:
            if process.pid != os.getpid() and any(Path(each.path) == file for each in process.open_files()):
                holders.append(f"{process.info['name']} (process {process.pid})")
        except psutil.Error:
            continue  # gone meanwhile, or another user's
    return ", ".join(holders) or "a process of another user"


def _servers(settings: Settings, services: Services) -> Iterator[Finding]:
    """Those of the running stack where it listens, whatever this shell's settings say; else whether it could start."""
    state = read_state(settings.home)
    running = {part.name: part.address for part in state.parts} if state and state.is_alive else None
    if running is None:
        yield _ports(settings)
    else:
        yield _same_settings(settings, running)
    for subject, name, outside, path in (
        ("Prefect", "prefect", settings.prefect_api_url, "/api/health"),
        ("data plane", "data-plane", None, "/health/ready"),
        ("control plane", "control-plane", None, "/health/ready"),
    ):
        if outside:
            yield _server(subject, f"{outside}/health")
        elif running is None:
            yield Finding(subject, "note", "not running", "Start it: switchyard up")
        elif address := running.get(name):
            yield _server(subject, f"{address}{path}")
    yield _registry(services, (running or {}).get("mlflow"), is_running=running is not None)


def _same_settings(settings: Settings, running: dict[str, str | None]) -> Finding:
    """A shell without the variables that the stack was started with asks at the wrong ports, and wonders."""
    elsewhere = [
        f"{spec.title} at {running[spec.name]} and not {spec.address}"
        for spec in stack(settings)
        if spec.name in running and running[spec.name] != spec.address
    ]
    if elsewhere:
        advice = "Give this shell the settings that 'switchyard up' was started with, or put them into .env."
        return Finding("settings", "wrong", "the running stack has other settings: " + ", ".join(elsewhere), advice)
    return Finding("settings", "ok", "those of the running stack")


def _registry(services: Services, address: str | None, *, is_running: bool) -> Finding:
    if services.settings.mlflow_tracking_uri is None and not is_running:
        return Finding("registry", "note", "not running", "Start it: switchyard up")
    registry = services.registry if address is None else services.registry_at(address)
    try:
        return Finding("registry", "ok", f"MLflow {registry.ping()} at {registry.address}")
    except SwitchyardError as error:
        return _wrong("registry", error)


def _server(subject: str, url: str) -> Finding:
    look = "Its log says why: switchyard logs"
    shown = mask(url)
    try:
        answer = httpx.get(url, timeout=_SERVER_SECONDS)
    except httpx.HTTPError as error:
        return Finding(subject, "wrong", f"does not answer at {shown}: {error}", look)
    if answer.status_code != 200:
        return Finding(subject, "wrong", f"{shown} answers {answer.status_code}: {answer.text[:300]}", look)
    return Finding(subject, "ok", f"answers at {shown}")


def _ports(settings: Settings) -> Finding:
    specs = stack(settings)
    try:
        check_ports(settings.host, specs)
    except SwitchyardError as error:
        return _wrong("ports", error)
    return Finding("ports", "ok", ", ".join(str(each.port) for each in specs if each.port) + " are free")


def _wrong(subject: str, error: SwitchyardError) -> Finding:
    return Finding(subject, "wrong", error.detail)
