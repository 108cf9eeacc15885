"""Item 4 under load: database, MLflow, Prefect and control plane are gone, singly and together. Predictions go on."""

import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

import psutil

from benchmarks.kills.databases import Postgresql, has_postgresql, postgresql_server
from benchmarks.kills.verdict import Verdict
from benchmarks.stack import PARTS, Stack, fresh_stack
from benchmarks.under_load.exchange import Fate
from benchmarks.under_load.judging import Window, judge_traffic, times_of
from benchmarks.under_load.ledger import answered_ids, judge_ledger, wait_until_shipped
from benchmarks.under_load.telltale import numbered_question, register, telltale
from benchmarks.under_load.traffic import Traffic
from benchmarks.waiting import wait_for
from control_plane.storage.setup import create_database
from serving.store import open_database

RATE = 50.0
_MODEL, _NUMBER = "outlasting", 8
_DATABASE = "database"
_TOGETHER = (_DATABASE, "mlflow", "prefect", "control-plane")
_TIMEOUT = 20.0
_GUARD = 240.0
_KILL_EVERY = 0.25
_BETWEEN = 100
"""Good answers between two outages."""


def outlast_outages(verdict: Verdict, _rng: random.Random, seconds: int) -> None:
    """Everything that `switchyard up` starts, on a real PostgreSQL; each outage lasts so long."""
    if not has_postgresql():
        verdict.skip("there is no PostgreSQL here whose wheel is installed")
        return
    with postgresql_server() as server:
        create_database(server.url, _TIMEOUT)
        with fresh_stack({"SWITCHYARD_DATABASE_URL": server.url}) as stack:
            stack.start()
            stack.wait_ready()
            _promote(stack, register(stack.mlflow_url, _MODEL, telltale(_NUMBER, 1)))
            _outlast(verdict, stack, server, seconds)
            stack.stop()


def _outlast(verdict: Verdict, stack: Stack, server: Postgresql, seconds: int) -> None:
    windows = []
    traffic = Traffic(stack.data_plane_port, lambda number: numbered_question(_MODEL, _NUMBER, number), RATE)
    with traffic.running():
        traffic.wait_for_more(_BETWEEN)
        for gone in _TOGETHER:
            with _outage(stack, server, [gone]):
                time.sleep(seconds)
            traffic.wait_for_more(_BETWEEN)
        with _outage(stack, server, _TOGETHER):
            time.sleep(seconds / 2)
            windows.append(_restart_data_plane(stack))
            time.sleep(seconds / 2)
        traffic.wait_for_more(_BETWEEN)
        wait_for(lambda: _all_ready(stack), "every part to be ready again", _GUARD)
    wait_until_shipped(stack.home / f"data-plane-{stack.data_plane_port}")
    verdict.figure("gone, one after the other, then all together", f"{', '.join(_TOGETHER)}; {seconds} s each")
    judge_traffic(verdict, f"{RATE:.0f} requests/s", traffic, windows)
    verdict.figure("answered in", times_of(traffic.outcomes))
    restart = windows[0].ended - windows[0].began
    verdict.figure("data plane restarted while all were gone: SIGTERM to ready", f"{restart:.1f} s")
    with closing(open_database(server.url, _TIMEOUT)) as database:
        judge_ledger(verdict, database, answered_ids(traffic.outcomes))


@contextmanager
def _outage(stack: Stack, server: Postgresql, names: Sequence[str]) -> Iterator[None]:
    """These are killed, and killed again whenever they come back, inside the block."""
    over = threading.Event()
    parts = [each for each in names if each != _DATABASE]
    killer = threading.Thread(target=_keep_dead, args=(stack, parts, over), daemon=True)
    if _DATABASE in names:
        server.kill()
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
        if _DATABASE in names:
            server.start()


def _keep_dead(stack: Stack, parts: Sequence[str], over: threading.Event) -> None:
    while parts and not over.is_set():
        for piece in stack.processes():
            if piece.part in parts:
                with suppress(psutil.Error):
                    piece.process.kill()
        over.wait(_KILL_EVERY)


def _restart_data_plane(stack: Stack) -> Window:
    """SIGTERM; the supervisor starts it again, and it knows what to serve from its own disk alone."""
    before = stack.part("data-plane")
    began = time.monotonic()
    if before.pid is not None:
        os.kill(before.pid, signal.SIGTERM)

    def is_back() -> bool:
        now = stack.part("data-plane")
        return now.restarts > before.restarts and now.state == "ready"

    wait_for(is_back, "the data plane to be ready again", _GUARD)
    excused: frozenset[Fate | int] = frozenset({Fate.REFUSED, 503})
    return Window("data plane restarted", began, time.monotonic(), excused, later=frozenset({Fate.RESET}))


def _all_ready(stack: Stack) -> bool:
    return all(stack.part(each).state == "ready" for each in PARTS)


def _promote(stack: Stack, version: str) -> None:
    """As a person does, through the control plane; returns when the version serves."""
    wish = json.dumps({"target": version, "reason": "trial"})
    change = _call(stack, "POST", f"/ml/models/{_MODEL}/promote", wish)
    ended = wait_for(lambda: _ended(_call(stack, "GET", f"/ml/changes/{change['id']}")), "the promotion", _GUARD)
    if ended["state"] != "succeeded":
        raise RuntimeError(f"the promotion ended as {ended['state']}: {ended['detail']}")


def _ended(change: dict[str, str]) -> dict[str, str] | None:
    return change if change["ended_at"] else None


def _call(stack: Stack, method: str, path: str, body: str | None = None) -> dict[str, str]:
    address = urlsplit(stack.control_plane_url)
    with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT)) as connection:
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        said: dict[str, str] = json.loads(answer.read())
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {answer.status}: {said}")
        return said
