"""The whole house, started once as a user starts it, for every test that can share it."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import BIN, clean_environment, end_tree, free_port, running, wait_until

if TYPE_CHECKING:  # they take seconds to import, and most tests here do without
    from tests.e2e.house import ServingHouse


@dataclass(frozen=True)
class Stack:
    """A running `switchyard up`."""

    home: Path
    environment: dict[str, str]
    output: Path
    pid: int
    data_plane: str
    control_plane: str
    prefect: str
    mlflow: str

    def run(self, *arguments: str) -> list[str]:
        """The command line of `switchyard`."""
        return [str(BIN / "switchyard"), *arguments]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, on free ports, in a folder of its own; ended by SIGINT, as Ctrl-C does."""
    folder = tmp_path_factory.mktemp("stack")
    names = ("DATA_PLANE", "CONTROL_PLANE", "PREFECT", "MLFLOW")
    ports = {name: free_port() for name in names}
    settings = {f"SWITCHYARD_{name}_PORT": str(port) for name, port in ports.items()}
    settings["SWITCHYARD_DATA_FOLDER"] = str(folder / "home")
    environment = {**clean_environment(), **settings, "COLUMNS": "200"}
    output = folder / "output.txt"
    with running([str(BIN / "switchyard"), "up"], log=output, environment=environment, cwd=folder) as process:
        wait_until(lambda: process.poll() is not None or "Ctrl-C" in output.read_text(), "the table of addresses", 300)
        assert process.poll() is None, output.read_text()
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        yield Stack(
            home=folder / "home",
            environment=environment,
            output=output,
            pid=process.pid,
            data_plane=urls["DATA_PLANE"],
            control_plane=urls["CONTROL_PLANE"],
            prefect=urls["PREFECT"],
            mlflow=urls["MLFLOW"],
        )
        os.kill(process.pid, signal.SIGINT)
        process.wait(120)
        end_tree(process)
    assert process.returncode == 0, output.read_text()


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[ServingHouse]":
    """A data plane for every test that only asks it; each brings models of its own names."""
    from tests.e2e.house import ServingHouse

    built = ServingHouse(tmp_path_factory.mktemp("house"))
    try:
        yield built
    finally:
        built.end()
