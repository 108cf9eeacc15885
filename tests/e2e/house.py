"""A real data plane with models in it, without MLflow and without control plane; and clients that use it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from sqlalchemy import text
from sqlmodel import select

from benchmarks.serving.house import House
from serving.store.tables import DesiredVersionRow, ReplicaVersionRow
from tests.e2e.data_plane import GUARD, DataPlane, eventually
from tests.models import ZooModel


class ServingHouse(House):
    """Starts a data plane on what a House keeps, and sees it through the eyes of a client and of the database."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder)
        self._folder = folder
        self._settings = settings
        self.plane = self.start()

    def start(self) -> DataPlane:
        """A data plane on this house; after `end_plane` another one, on the same port."""
        settings: dict[str, Any] = {**self.settings, **self._settings}
        plane = DataPlane(self._folder / "plane", **settings)
        self._settings["data_plane_port"] = plane.port
        self.plane = plane
        return plane

    def end(self) -> None:
        """End the data plane and let go of the database."""
        self.plane.end()
        self.close()

    def serve(self, model: ZooModel, model_id: str | None = None, version: str = "1", **config: Any) -> str:
        """Keep it, give it all traffic, and wait until every replica answers for it; the model's id."""
        name = model_id or model.name
        self.add(model, name, version)
        if config:
            self.configure(name, **config)
        self.route(name, {version: 1.0})
        self.wait_applied()
        return name

    def add(self, model: ZooModel, model_id: str, version: str) -> dict[str, Any]:
        """Keep it, and wait until every replica holds it; what it says of it."""
        self.keep(model.folder, model_id, version)
        self.want(model_id, version)
        return self.wait_ready(model_id, version)

    def wait_ready(self, model_id: str, version: str, within: float = GUARD) -> dict[str, Any]:
        """What the replica says of a version once it holds it, for its last attempt."""
        row = self._settled(model_id, version, within)
        assert row["state"] == "ready", row
        facts: dict[str, Any] = row["facts"]
        return facts

    def wait_failed(self, model_id: str, version: str, within: float = GUARD) -> str:
        """Why the replica does not hold a version."""
        row = self._settled(model_id, version, within)
        assert row["state"] == "failed", row
        return str(row["reason"])

    def wait_applied(self) -> None:
        """Returns when every HTTP process has taken up all that was written of routes and configurations."""
        query = "SELECT (SELECT generation FROM replica) >= (SELECT value FROM route_generation)"
        eventually(lambda: self.rows(query)[0][0], "the generation to be applied")

    def rows(self, query: str, **values: Any) -> list[Any]:
        """What the database answers."""
        with self.database.reading() as session:
            return list(session.connection().execute(text(query), values).all())

    def predict(self, model_id: str, body: Any, **more: Any) -> httpx.Response:
        """Ask; `body` is the JSON, or bytes to be sent as they are."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {"content-type": "application/json", **more.pop("headers", {})}
        return self.plane.client.post(f"/ml/models/{model_id}/predict", headers=headers, **content, **more)

    def ask(self, model_id: str, input_data: Any, **more: Any) -> dict[str, Any]:
        """The answer to this input, which must be one."""
        answer = self.predict(model_id, {"input_data": input_data, **more})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _settled(self, model_id: str, version: str, within: float) -> dict[str, Any]:
        """The replica's row about the last attempt at a version, when it is no more loading."""

        def look() -> dict[str, Any] | None:
            assert self.plane.process.poll() is None, self.plane.log.read_text()[-2000:]
            with self.database.reading() as session:
                desired = session.get(DesiredVersionRow, (model_id, version))
                mine = select(ReplicaVersionRow).where(
                    ReplicaVersionRow.model_id == model_id, ReplicaVersionRow.version == version
                )
                row = session.exec(mine).first()
                current = row and row.state != "loading" and (desired is None or row.attempt >= desired.attempt)
                return row.model_dump() if row and current else None

        return eventually(look, f"version {version} of {model_id} to be ready or refused", within)


class Traffic:
    """Clients that ask without pause, each on a connection of its own."""

    def __init__(self, house: ServingHouse, model_id: str, body: dict[str, Any], clients: int = 4) -> None:
        self.answers: list[tuple[float, int, dict[str, Any]]] = []  # monotonic time, status, body
        self.errors: list[str] = []
        self._stopped = threading.Event()
        url = f"http://127.0.0.1:{house.plane.port}/ml/models/{model_id}/predict"
        self._threads = [threading.Thread(target=self._run, args=(url, body)) for _ in range(clients)]

    def _run(self, url: str, body: dict[str, Any]) -> None:
        with httpx.Client(timeout=GUARD) as client:
            while not self._stopped.is_set():
                try:
                    answer = client.post(url, json=body)
                    self.answers.append((time.monotonic(), answer.status_code, answer.json()))
                except httpx.TransportError as problem:
                    self.errors.append(type(problem).__name__)

    @property
    def statuses(self) -> set[int]:
        """All that were seen."""
        return {status for _, status, _ in self.answers}

    def wait_for_more(self, count: int) -> None:
        """Returns when so many more answers have come."""
        until = len(self.answers) + count
        eventually(lambda: len(self.answers) >= until, f"{count} more answers")

    @contextmanager
    def running(self) -> Iterator["Traffic"]:
        """From here to the end of the block."""
        for each in self._threads:
            each.start()
        try:
            yield self
        finally:
            self._stopped.set()
            for each in self._threads:
                each.join()


def together(house: ServingHouse, model_id: str, bodies: list[Any], **more: Any) -> list[httpx.Response]:
    """The answers to requests that are sent at the same time, each on a connection of its own; in their order."""
    found: dict[int, httpx.Response] = {}
    gate = threading.Barrier(len(bodies))
    url = f"http://127.0.0.1:{house.plane.port}/ml/models/{model_id}/predict"

    def ask(number: int, body: Any) -> None:
        with httpx.Client(timeout=GUARD, **more) as client:
            gate.wait()
            found[number] = client.post(url, json=body)

    threads = [threading.Thread(target=ask, args=each) for each in enumerate(bodies)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return [found[number] for number in range(len(bodies))]


def as_json(value: Any) -> Any:
    """A cell of a table as a client would write it: a gap is null."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is None or value is pd.NA or value != value else value  # only NaN differs from itself


def columns_of(rows: Any) -> dict[str, list[Any]]:
    """A table as `input_data`; of an ndarray the columns have no names, see `tensor_of`."""
    return {str(name): [as_json(each) for each in rows[name].tolist()] for name in rows.columns}


def record_of(rows: Any, row: int = 0) -> dict[str, Any]:
    """One row of a table as `input_data`."""
    return {name: values[row] for name, values in columns_of(rows).items()}
