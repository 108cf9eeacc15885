"""Real servers for tests: free ports, started processes that are always ended, waiting for conditions."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

PYTHON = sys.executable
BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now; another one each time.

    Below those that the kernel hands to outgoing connections, one of which might be made before our server has started;
    and of another range in each process that pytest spreads the tests over.
    """
    for _ in range(_RANGE):
        port = _FIRST_PORT + next(_turns) % _RANGE
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


_RANGE = 3_500
_FIRST_PORT = 18_000 + _RANGE * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4)
_turns = itertools.count(random.randrange(_RANGE))


Answer = TypeVar("Answer")


def wait_until(condition: Callable[[], Answer], what: str, seconds: float = 60.0) -> Answer:
    """The first true answer of `condition`; fails with `what` was waited for after `seconds`, a guard against hanging."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s for: {what}")


def answers(url: str, status: int = 200) -> bool:
    """Whether a URL answers with this status now."""
    try:
        return httpx.get(url, timeout=5).status_code == status
    except httpx.HTTPError:
        return False


@contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; it and all its descendants are gone afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**clean_environment(), **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_tree(process)


def end_tree(process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    """SIGTERM, then SIGKILL, to a process and everything below it."""
    family = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    for each in [*family, *descendants(process.pid)]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(seconds)


def descendants(pid: int) -> list[psutil.Process]:
    """A process and everything below it; empty when it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def clean_environment() -> dict[str, str]:
    """Our environment without settings of the person who runs the tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SWITCHYARD_", "PREFECT_", "MLFLOW_", "PYTEST_"))
    }
