"""A real data plane in a process of its own, for tests that need one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from control_plane.storage.setup import create_database
from serving.channel import SocketFolder
from serving.errors import SwitchyardError
from tests.processes import free_port

GUARD = 60.0
"""Seconds after which a condition that should come within twelve is given up."""

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found | None], what: str, within: float = GUARD) -> Found:
    """The first true value of the condition. Fails when there is none in time; errors of connecting count as false."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            found = condition()
        except (httpx.TransportError, psutil.Error, OSError):
            pass
        else:
            if found:
                return found
        time.sleep(0.02)
    raise AssertionError(f"not within {within:g} s: {what}")


class DataPlane:
    """`python -m serving` with settings of its own; `end()` leaves no process behind, whatever happened."""

    def __init__(self, folder: Path, command: list[str] | None = None, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = settings.pop("data_plane_port", None) or free_port()
        self.data_folder = settings.pop("data_folder", folder / "data")
        self.log = folder / "log.jsonl"
        if "database_url" not in settings:
            with contextlib.suppress(SwitchyardError):  # a folder that cannot be written to is a case of its own
                create_database(f"sqlite:///{Path(self.data_folder) / 'switchyard.db'}", timeout=5)
        settings |= {"data_folder": self.data_folder, "data_plane_port": self.port}
        env = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHYARD_")}
        env |= {f"SWITCHYARD_{name.upper()}": str(value) for name, value in settings.items()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command or [sys.executable, "-m", "serving"],
                cwd=folder,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C of the test must be able to reach this group alone
            )
        self._seen: dict[int, psutil.Process] = {}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=GUARD)

    def get(self, path: str) -> httpx.Response:
        """One request over a connection of its own."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=GUARD)

    def ready(self) -> list[dict[str, Any]]:
        """The workers, once all of them answer."""

        def all_answer() -> Any:
            answer = self.get("/health/ready")
            workers = answer.json()["workers"] if answer.status_code == 200 else []
            return workers if workers and all(each["round_trip"] is not None for each in workers) else None

        workers: list[dict[str, Any]] = eventually(all_answer, f"all workers ready; log: {self.log.read_text()}")
        self.tree()
        return workers

    def tree(self) -> list[psutil.Process]:
        """Every living process of the server, those that have lost their parent too."""
        try:
            root = psutil.Process(self.process.pid)
            self._seen |= {each.pid: each for each in [root, *root.children(recursive=True)]}
        except psutil.NoSuchProcess:
            pass
        return [each for each in self._seen.values() if _alive(each)]

    def apis(self) -> list[psutil.Process]:
        """The HTTP processes: forks of the parent."""
        root = psutil.Process(self.process.pid)
        return [each for each in root.children() if each.cmdline() == root.cmdline()]

    def fork_server(self) -> psutil.Process:
        """The process that workers are forked from."""
        (found,) = [
            each for each in psutil.Process(self.process.pid).children() if "forkserver" in " ".join(each.cmdline())
        ]
        return found

    @property
    def socket_folder(self) -> Path:
        """Where it keeps its sockets, whether or not the path of its data folder does for them."""
        return SocketFolder(Path(self.data_folder) / "run", self.port).path

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the samples with these labels."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [each for family in families for each in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    def logged(self) -> list[dict[str, Any]]:
        """Every line of the log; fails on one that is not JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def gone(self) -> None:
        """Returns once no process of the server is left."""
        eventually(lambda: not self.tree(), "every process of the server gone")

    def end(self) -> None:
        """Stop it if it still runs; kill what is left."""
        self.client.close()
        self.tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(GUARD)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        else:  # it has ended before: what is left of it does not hear of our end
            for each in self.tree():
                each.terminate()
        try:
            eventually(lambda: not self.tree(), "every process of the server gone", within=3)
        except AssertionError:
            for each in self.tree():
                each.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
