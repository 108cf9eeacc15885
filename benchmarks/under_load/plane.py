"""A data plane for a trial: the harness that the tests use, in a folder of its own, with telltale models in it."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.under_load.telltale import save_telltale
from benchmarks.waiting import wait_for
from tests.e2e.house import ServingHouse

_GUARD = 60.0


@contextmanager
def fresh_house(**settings: Any) -> Iterator[ServingHouse]:
    """A data plane with these settings; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="switchyard-", ignore_cleanup_errors=True) as folder:
        house = ServingHouse(Path(folder), **settings)
        try:
            yield house
        finally:
            house.end()


def serve_telltale(
    house: ServingHouse, model_id: str, model: int, *, versions: int = 1, seconds: float = 0.0, **config: Any
) -> str:
    """Keep so many versions of telltale number `model` and route all traffic to the first; the model's id.

    A call of the model takes `seconds`, at least.
    """
    with tempfile.TemporaryDirectory(prefix="switchyard-") as folder:
        for version in range(1, versions + 1):
            house.keep(save_telltale(Path(folder), model, version, seconds), model_id, str(version))
    for version in range(1, versions + 1):
        house.want(model_id, str(version))
        house.wait_ready(model_id, str(version))
    if config:
        house.configure(model_id, **config)
    house.route(model_id, {"1": 1.0})
    house.wait_applied()
    return model_id


def serve_saved(house: ServingHouse, model_id: str, saved: Path, **config: Any) -> str:
    """Keep a saved model as version 1 and route all traffic to it; the model's id."""
    house.keep(saved, model_id, "1")
    house.want(model_id, "1")
    house.wait_ready(model_id, "1")
    if config:
        house.configure(model_id, **config)
    house.route(model_id, {"1": 1.0})
    house.wait_applied()
    return model_id


def replica_folder(house: ServingHouse) -> Path:
    """Where its data plane keeps what is its own: the spool, the last table of routes."""
    return house.home / f"data-plane-{house.plane.port}"


def worker_pids(house: ServingHouse) -> set[int]:
    """The workers, once all of them answer."""
    return {each["pid"] for each in house.plane.ready()}


def wait_replaced(house: ServingHouse, old: set[int], guard: float = _GUARD) -> float:
    """Seconds until every worker is there and none of these is among them."""
    began = time.monotonic()
    wait_for(lambda: not old & worker_pids(house), "other workers in the place of those that ended", guard)
    return time.monotonic() - began
