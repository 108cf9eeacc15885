"""The warm-up flow on a real Prefect server and a real database; the replicas are played, as rows they would write."""

import asyncio
import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError

from control_plane.services import Services
from control_plane.settings import Settings
from flows import __main__ as runner
from flows import warm_up as module
from flows.deployments import DEPLOYMENTS, Deployed, for_runner, offer_models
from flows.warm_up import WarmUpRequest, warm_up
from serving.store import Database
from serving.store.tables import DesiredVersionRow, ReplicaVersionRow
from tests.processes import wait_until
from tests.services.serving_world import PlayedReplica, Registry, make_services, on_sqlite

pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    # Prefect leaves connections of its own clients to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

(WARM_UP,) = (each for each in DEPLOYMENTS if each.name == "warm-up")


@pytest.fixture(autouse=True)
def _leave_nothing_to_collect() -> Iterator[None]:
    """What Prefect leaves is collected here, where it is expected, and not in another test."""
    yield
    gc.collect()


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    found.add()
    return found


@pytest.fixture
def house(database: Database, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the flow works with: the test's database and registry."""

    @contextmanager
    def services() -> Iterator[Services]:
        opened = make_services(database, registry, tmp_path)
        yield opened
        opened.close()

    monkeypatch.setattr(module, "_services", services)


def run(**fields: Any) -> State[Any]:
    """The state in which a run of the flow ends, as the UI shows it."""
    state: State[Any] = warm_up(WarmUpRequest(model_id="flights", **fields), return_state=True)
    return state


def table() -> list[dict[str, Any]]:
    """The latest table of timings."""
    rows: list[dict[str, Any]] = json.loads(latest("warm-up"))
    return rows


def latest(key: str) -> Any:
    """What the newest artifact of this name holds."""
    found: Any = Artifact.get(key)
    return found.data


@on_sqlite
@pytest.mark.usefixtures("house")
class TestRuns:
    def test_timings_of_every_replica_are_on_record(self, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody could tell why the first requests after a promotion are slow, and on which host."""
        with PlayedReplica(database, "one:8000"), PlayedReplica(database, "two:8000"):
            ended = run(target="1")
        assert ended.is_completed(), ended
        assert ended.result() == {"version": "1", "replicas": 2, "workers": 2}
        assert [(each["replica"], each["state"]) for each in table()] == [("one:8000", "ready"), ("two:8000", "ready")]
        assert (table()[0]["load s"], table()[0]["first ms"]) == ("0.100", "10.00")
        assert float(latest("warm-up-progress")) == 100.0
        assert "flights 1: one:8000 ready, two:8000 ready" in caplog.text

    def test_it_loads_anew_unless_told_not_to(self, database: Database) -> None:
        """Timings would be those of last week; or each look at them would load a model again."""
        with PlayedReplica(database) as replica:
            run(target="1")
            run(target="1")
            assert len({attempt for _, attempt in replica.attempts}) == 2
            assert run(target="1", anew=False).is_completed()
            assert len(replica.attempts) == 2
            assert table()[0]["load s"] == "0.100"

    def test_a_replica_that_cannot_load_it_shows_red_with_the_reason(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A run that looks well, and a version that is ready nowhere; or values of its example in a log."""
        with PlayedReplica(database, "one:8000"), PlayedReplica(database, "two:8000") as two:
            two.refuses["1"] = "could not convert 'Ada Lovelace' to float"
            ended = run(target="1")
        assert ended.is_failed()
        assert "it cannot be loaded by two:8000. The run's artifact 'warm-up' says why." in str(ended.message)
        states = {each["replica"]: (each["state"], each["reason"]) for each in table()}
        assert states["two:8000"] == ("failed", "could not convert 'Ada Lovelace' to float")
        assert "two:8000" in caplog.text  # Prefect logs the message of the state
        assert "Lovelace" not in caplog.text

    def test_what_failed_when_it_was_loaded_anew_is_not_left_alone(self, database: Database) -> None:
        """It answers, from before: the run would show it as ready, without a figure."""
        with PlayedReplica(database):
            run(target="1")
        with database.writing() as session:
            row = session.get_one(ReplicaVersionRow, ("127.0.0.1:8000", "flights", "1"))
            row.state, row.reason, row.facts = "failed", "broken", {"held": True}
            session.add(row)
        with PlayedReplica(database) as replica:
            assert run(target="1", anew=False).is_completed()
        assert len(replica.attempts) == 1
        assert table()[0]["load s"] == "0.100"

    def test_a_replica_that_says_nothing_new_is_not_shown_with_old_timings(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that is red because of one host would show that host as ready."""
        with PlayedReplica(database) as replica:
            assert run(target="1").is_completed()
            monkeypatch.setattr(replica, "_report", lambda *_: None)
            ended = run(target="1")
        assert ended.is_failed()
        assert "Not ready after" in str(ended.message)
        assert [(each["state"], each["load s"]) for each in table()] == [("waiting", "-")]

    def test_a_refusal_is_logged_in_words_only(self, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        """The line that helps would stand below fifty lines of our code."""
        with PlayedReplica(database):
            assert run(target="7").is_failed()
        assert "Known versions: 1" in caplog.text
        assert "Traceback" not in caplog.text

    def test_with_no_replica_alive_it_says_so(self, database: Database) -> None:
        """It would wait for ever, or call it a success."""
        PlayedReplica(database).die()
        ended = run(target="1")
        assert ended.is_failed()
        assert "No data plane is running" in str(ended.message)

    def test_a_wrong_target_is_answered_with_what_there_is(self, database: Database) -> None:
        """The form takes any text: the run has to say what would have been right."""
        for target, words in (
            ("7", "Known versions: 1"),
            ("winner", "no alias 'winner'"),
            ("a b", "neither a version"),
        ):
            ended = run(target=target)
            assert ended.is_failed()
            assert words in str(ended.message)
        with database.reading() as session:
            assert session.get(DesiredVersionRow, ("flights", "7")) is None

    def test_workers_are_told_apart(self, database: Database) -> None:
        """The spare loads first and cold: its figures are not those of the workers that answer."""
        with PlayedReplica(database):
            run(target="1")
        workers = [
            {"worker": 0, "spare": False, "load_seconds": 0.2, "warmup_seconds": [0.03, 0.01, 0.02], "memory_mb": 1.5},
            {"worker": 1, "spare": True, "load_seconds": 0.4, "warmup_seconds": [], "memory_mb": 9.0},
        ]
        with database.writing() as session:
            row = session.get_one(ReplicaVersionRow, ("127.0.0.1:8000", "flights", "1"))
            row.facts = {**row.facts, "workers": workers}
            session.add(row)
        with PlayedReplica(database):
            assert run(target="1", anew=False).is_completed()
        shown = ("worker", "load s", "first ms", "median ms", "last ms", "memory MB")
        assert [[each[name] for name in shown] for each in table()] == [
            ["0", "0.200", "30.00", "20.00", "20.00", "1.5"],
            ["1 (spare)", "0.400", "-", "-", "-", "9.0"],
        ]


class TestChoices:
    def test_the_form_gets_the_models_and_keeps_all_else(self) -> None:
        """A deployment that loses its schedule, tags or description by a refresh would stop working one day."""

        async def look() -> None:
            housekeeping = next(each for each in DEPLOYMENTS if each.every)
            for deployed in (WARM_UP, housekeeping):
                identifier = await deploy(deployed)
                async with get_client() as client:
                    before = await client.read_deployment(identifier)
                    await offer_models(identifier, deployed, ["cancer", "flights"])
                    after = await client.read_deployment(identifier)
                kept = {"updated", "parameter_openapi_schema"}
                assert after.model_dump(exclude=kept) == before.model_dump(exclude=kept)
                assert after.tags == list(deployed.tags)
                assert len(after.schedules) == (1 if deployed.every else 0)
                assert (after.parameter_openapi_schema != before.parameter_openapi_schema) is deployed.names_models

        asyncio.run(look())

    def test_prefect_refuses_a_model_that_is_not_there(self) -> None:
        """The run would start, load for seconds, and then fail on a typing error."""

        async def look() -> None:
            identifier = await deploy(WARM_UP)
            await offer_models(identifier, WARM_UP, ["cancer", "flights"])
            async with get_client() as client:
                right = {"request": {"model_id": "flights"}}
                await client.create_flow_run_from_deployment(identifier, parameters=right)
                with pytest.raises(PrefectHTTPStatusError) as refused:
                    wrong = {"request": {"model_id": "fligths"}}
                    await client.create_flow_run_from_deployment(identifier, parameters=wrong)
                assert refused.value.response.status_code == 409

        asyncio.run(look())

    def test_the_runner_follows_the_models_there_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A new model could not be chosen until the next restart; a registry that is down would empty the list."""
        played: list[dict[str, Any]] = [
            {"items": [{"model_id": "flights"}], "unavailable": {}},
            {"items": [{"model_id": "kept"}], "unavailable": {"registry": "does not answer"}},
            {"error": "DatabaseUnreachable", "detail": "gone"},
            {"items": [{"model_id": "cancer"}, {"model_id": "flights"}], "unavailable": {}},
        ]
        monkeypatch.setattr(runner, "_OFFER_SECONDS", 0.01)

        async def look() -> list[list[str]]:
            identifier = await deploy(WARM_UP)
            seen: list[list[str]] = []

            async def offer(each: UUID, deployed: Deployed, models: list[str]) -> None:
                seen.append(list(models))
                if len(seen) == 1:  # as with Prefect away: it is to be tried again, and nothing ends
                    await offer_models(uuid4(), deployed, models)
                await offer_models(each, deployed, models)

            monkeypatch.setattr(runner, "offer_models", offer)
            with playing(played) as url:
                settings = Settings(control_plane_port=int(url.rpartition(":")[2]))
                task = asyncio.create_task(runner._keep_offering(settings, {WARM_UP: identifier}))
                await asyncio.to_thread(wait_until, lambda: ["cancer", "flights"] in seen, "the new model", 30)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            return seen

        seen = asyncio.run(look())
        assert seen == [["flights"], ["flights"], ["cancer", "flights"]]


async def deploy(deployed: Deployed) -> UUID:
    """As the embedded runner does it."""
    identifier: UUID = await (await for_runner(deployed)).aapply()
    return identifier


@contextmanager
def playing(answers: list[dict[str, Any]]) -> Iterator[str]:
    """A control plane that lists these, one after the other; the last for ever. The first one twice."""
    left = [answers[0], *answers]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            body = json.dumps(answer).encode()
            self.send_response(503 if "error" in answer else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
