"""Item 2: the supervisor is killed, in a start too, alone or with its guardian. Nothing is left, the next start works."""

import http.client
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from benchmarks.kills.databases import count_of_tables, integrity
from benchmarks.kills.verdict import Verdict, spread
from benchmarks.kills.writer import MODEL, prepare_model
from benchmarks.stack import Piece, Stack, StartFailed, fresh_stack, is_alive
from benchmarks.waiting import wait_for
from serving.store import open_database

# What the guardian is held to, and the guard against waiting for ever beyond it. Seconds.
_GONE_WITHIN, _GONE_GUARD = 10.0, 60.0
_START_GUARD = 120.0
# A first start is broken off when MLflow, the last to create its database and the slowest, has made so many tables and
# indexes of some 220: a measure of progress that does not depend on how fast the machine is.
_PROGRESS = range(1, 200)
_TIMEOUT = 20.0
_DATABASES = ("switchyard.db", "prefect/prefect.db", "mlflow/mlflow.db")


def kill_supervisors(verdict: Verdict, rng: random.Random, rounds: int) -> None:
    """A round: three first starts are broken off; on a fourth folder it is killed when up, then killed with its guardian."""
    trial = _Trial(verdict)
    for _ in range(rounds):
        for break_off in (trial.kill_supervisor, trial.kill_all, trial.interrupt):
            with fresh_stack() as stack:
                trial.break_off_first_start(stack, break_off, rng.choice(_PROGRESS))
        with fresh_stack() as stack:
            trial.kill_alone(stack)
            trial.kill_with_guardian(stack)
            trial.end_in_order(stack)
    trial.report()


class _Trial:
    """Kills, starts again on the same data, and counts."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._gone: list[float] = []
        self._starts: list[float] = []
        self._stopped: list[float] = []
        self._left: list[str] = []

    def break_off_first_start(self, stack: Stack, break_off: Callable[[Stack], None], progress: int) -> None:
        stack.start()
        file = stack.home / "mlflow" / "mlflow.db"
        wait_for(lambda: count_of_tables(file) >= progress, "MLflow to create its database", _START_GUARD)
        break_off(stack)
        try:
            self._starts.append(_started(stack))
        except StartFailed as error:
            how = f"{break_off.__name__}, when MLflow had made {progress} tables and indexes"
            self._verdict.problems.append(f"after a first start was broken off ({how}), the next one failed: {error}")

    def kill_all(self, stack: Stack) -> None:
        """As a machine that is reset, or a container that is killed."""
        stack.kill_everything()

    def interrupt(self, stack: Stack) -> None:
        """As Ctrl-C does."""
        self._stopped.append(stack.stop())

    def kill_supervisor(self, stack: Stack) -> None:
        stack.kill_supervisor()
        died = time.monotonic()
        wait_for(lambda: not stack.processes(), "nothing to be left of a killed supervisor", _GONE_GUARD)
        gone = time.monotonic() - died
        self._gone.append(gone)
        self._verdict.require(gone <= _GONE_WITHIN, f"{gone:.1f} s after a kill, a process was still there")

    def kill_alone(self, stack: Stack) -> None:
        _started(stack)
        database = open_database(f"sqlite:///{stack.home / 'switchyard.db'}", _TIMEOUT)
        prepare_model(database)
        database.close()
        self.kill_supervisor(stack)
        self._starts.append(_started(stack))
        self._look_at_data(stack)

    def kill_with_guardian(self, stack: Stack) -> None:
        old = stack.processes()
        # Microseconds apart, so that neither sees the other's death.
        os.kill(stack.guardian, signal.SIGKILL)
        stack.kill_supervisor()
        left = [each for each in old if is_alive(each.process)]
        self._left.append(f"{len(left)} of {len(old)}")
        self._starts.append(_started(stack))
        self._require_gone(old, "supervisor and guardian were killed, and the next start")
        self._look_at_data(stack)

    def end_in_order(self, stack: Stack) -> None:
        self._stopped.append(stack.stop())
        for name in _DATABASES:
            found = integrity(stack.home / name)
            self._verdict.require(found == "ok", f"{name}: integrity_check: {found}")

    def report(self) -> None:
        self._verdict.figure("supervisor killed: until nothing was left", spread(self._gone))
        self._verdict.figure("killed with its guardian: left for the next start to end", ", ".join(self._left))
        self._verdict.figure("command to table afterwards, same data", spread(self._starts))
        self._verdict.figure("SIGTERM to everything gone", spread(self._stopped))

    def _require_gone(self, old: Sequence[Piece], after: str) -> None:
        left = [each.part for each in old if is_alive(each.process)]
        self._verdict.require(not left, f"after {after}, old processes are left: {', '.join(left)}")

    def _look_at_data(self, stack: Stack) -> None:
        listed = _models(stack)
        self._verdict.require(MODEL in listed, f"after a kill and a start the model is not listed: {listed}")


def _started(stack: Stack) -> float:
    stack.start()
    return stack.wait_ready()


def _models(stack: Stack) -> list[str]:
    address = urlsplit(stack.control_plane_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/ml/models")
        return [each["model_id"] for each in json.loads(connection.getresponse().read())["items"]]
    finally:
        connection.close()
