"""Item 2: the supervisor is killed, alone or with its guardian. Nothing is left, and the next start works."""

import http.client
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from benchmarks.kills.databases import integrity
from benchmarks.kills.verdict import Verdict, spread
from benchmarks.kills.writer import MODEL, prepare_model
from benchmarks.stack import Piece, Stack, fresh_stack, is_alive
from benchmarks.waiting import wait_for
from serving.store import open_database

# What the guardian is held to, and the guard against waiting for ever beyond it. Seconds.
_GONE_WITHIN, _GONE_GUARD = 10.0, 60.0
# The moment of a kill during a start, seconds after the command: a first start takes somewhat longer.
_STARTING = 10.0
_TIMEOUT = 20.0
_DATABASES = ("switchyard.db", "prefect/prefect.db", "mlflow/mlflow.db")


def kill_supervisors(verdict: Verdict, rng: random.Random, rounds: int) -> None:
    """A round, on a folder of its own: killed during the first start, killed alone, killed together with the guardian."""
    trial = _Trial(verdict)
    for _ in range(rounds):
        with fresh_stack() as stack:
            trial.kill_while_starting(stack, rng.uniform(0, _STARTING))
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
        self._left: list[str] = []

    def kill_while_starting(self, stack: Stack, seconds: float) -> None:
        stack.start()
        time.sleep(seconds)
        self._kill(stack, f"killed {seconds:.1f} s into the first start")
        self._starts.append(_started(stack))
        self._keep_something(stack)

    def kill_alone(self, stack: Stack) -> None:
        self._kill(stack, "killed alone")
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
        stack.stop()
        for name in _DATABASES:
            found = integrity(stack.home / name)
            self._verdict.require(found == "ok", f"{name}: integrity_check: {found}")

    def report(self) -> None:
        self._verdict.figure("supervisor killed: until nothing was left", spread(self._gone))
        self._verdict.figure("killed with its guardian: left for the next start to end", ", ".join(self._left))
        self._verdict.figure("command to table after a kill, same data", spread(self._starts))

    def _kill(self, stack: Stack, when: str) -> None:
        stack.kill_supervisor()
        died = time.monotonic()
        wait_for(lambda: not stack.processes(), f"nothing to be left after the supervisor was {when}", _GONE_GUARD)
        gone = time.monotonic() - died
        self._gone.append(gone)
        self._verdict.require(gone <= _GONE_WITHIN, f"{when}: the last process was gone after {gone:.1f} s")

    def _require_gone(self, old: Sequence[Piece], after: str) -> None:
        left = [each.part for each in old if is_alive(each.process)]
        self._verdict.require(not left, f"after {after}, old processes are left: {', '.join(left)}")

    def _keep_something(self, stack: Stack) -> None:
        database = open_database(f"sqlite:///{stack.home / 'switchyard.db'}", _TIMEOUT)
        prepare_model(database)
        database.close()
        self._look_at_data(stack)

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
