"""Promotion: another version serves once every replica is ready for it, and otherwise nothing has changed."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, select
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from control_plane.errors import ChangeMovedOn, ChangeUnderWay, LeaseHeld
from control_plane.replicas import Progress
from control_plane.rollback import Executor, TargetChecks, Wish
from control_plane.services import Services
from control_plane.storage.aliases import wanted_aliases
from control_plane.storage.changes import move_change
from control_plane.storage.leases import take_lease
from control_plane.storage.routes import lease_name, read_generation, read_routes, write_routes
from control_plane.storage.tables import ChangeRow, ChangeStepRow, LeaseRow
from serving.routing import Route
from serving.store import Database, ModelVersionRow
from serving.store.tables import DesiredVersionRow
from tests.processes import wait_until
from tests.services.serving_world import (
    COLUMNS,
    QUICK,
    PlayedReplica,
    Registry,
    ended,
    make_services,
    on_sqlite,
    promote,
    promoted,
    running,
    signature,
)


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for accuracy in (0.81, 0.84, 0.6):
        registry.add(metrics={"accuracy": accuracy})
    return registry


@pytest.fixture
def services(database: Database, registry: Registry, tmp_path: Path) -> Iterator[Services]:
    services = make_services(database, registry, tmp_path)
    yield services
    services.close()


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    with running(services) as client:
        yield client


@pytest.fixture
def patient_client(database: Database, registry: Registry, tmp_path: Path) -> Iterator[TestClient]:
    """Of a control plane that waits for the registry however busy the machine is."""
    with running(make_services(database, registry, tmp_path, pace=replace(QUICK, quick=60))) as client:
        yield client


@pytest.fixture
def replica(database: Database) -> Iterator[PlayedReplica]:
    with PlayedReplica(database) as replica:
        yield replica


def routes(database: Database) -> list[Route]:
    with database.reading() as session:
        return read_routes(session).get("flights", [])


def wanted(database: Database) -> dict[str, bool]:
    """version -> pinned"""
    with database.reading() as session:
        return {row.version: row.pinned for row in session.exec(select(DesiredVersionRow))}


def wish(target: str = "1", **more: Any) -> Wish:
    return Wish(model_id="flights", target=target, reason="test", requested_by="ada", **more)


def drive(services: Services, change_id: str, *, until: str) -> None:
    """Step by step, as the duty does, until it has reached a state."""

    def stepped() -> bool:
        if services.changes.find(change_id).state == until:
            return True
        services.executor.advance(change_id)
        return False

    wait_until(stepped, f"the change to be {until}", 20)


def test_a_version_is_prepared_everywhere_and_then_serves(
    client: TestClient, database: Database, replica: PlayedReplica, registry: Registry
) -> None:
    """The one thing promotion is for, with all that the record promises."""
    promoted(client, "1")
    answer = client.post(
        "/ml/models/flights/promote", json={"target": "2", "reason": "better"}, headers={"X-Requested-By": "ada"}
    )
    begun = answer.json()
    assert (answer.status_code, begun["state"], begun["source"]) == (202, "requested", "1")
    change = ended(client, begun)
    assert (change["state"], change["target"], change["requested_by"]) == ("succeeded", "2", "ada")
    assert [(step["name"], step["state"]) for step in change["steps"]] == [
        (name, "passed") for name in ("checking", "preparing", "shifting", "verifying")
    ]
    assert [step["step"] for step in change["plan"]] == ["checking", "preparing", "shifting", "verifying"]
    assert "come with the rollback engine" in change["plan"][2]["what"]
    assert change["durations"].keys() == {"detect", "decide", "validate", "shift", "verify"}
    assert all(change["durations"][part] >= 0 for part in ("decide", "validate", "shift", "verify"))
    assert change["links"].keys() == {"console", "prefect"}
    prepared = change["steps"][1]["evidence"]["replicas"][replica.name]
    assert (prepared["state"], prepared["engine"], prepared["load_seconds"]) == ("ready", "sklearn", 0.1)
    assert routes(database) == [Route("2", 1.0)]
    assert wanted(database) == {"1": True, "2": False}
    with database.reading() as session:
        assert wanted_aliases(session) == {"flights": {"champion": "2", "previous": "1"}}
    wait_until(lambda: registry.aliases("flights") == {"champion": "2", "previous": "1"}, "MLflow to show it", 20)


@on_sqlite
def test_the_first_version_has_no_previous(client: TestClient, database: Database, replica: PlayedReplica) -> None:
    """There is nothing to go back to, and nothing is made up."""
    change = promoted(client, "1")
    assert change["source"] is None
    with database.reading() as session:
        assert wanted_aliases(session) == {"flights": {"champion": "1"}}


@on_sqlite
def test_an_alias_is_resolved_to_its_version(client: TestClient, registry: Registry, replica: PlayedReplica) -> None:
    """People promote what their pipeline calls challenger."""
    registry.set_alias("flights", "challenger", "2")
    assert promoted(client, "challenger")["target"] == "2"


@on_sqlite
def test_what_serves_already_succeeds_without_being_touched(
    client: TestClient, database: Database, replica: PlayedReplica
) -> None:
    """A pipeline that promotes what serves must not fail, nor have the version loaded anew."""
    promoted(client, "1")
    with database.reading() as session:
        before = read_generation(session)
    change = promoted(client, "champion")
    assert (change["target"], [step["name"] for step in change["steps"]]) == ("1", ["checking"])
    assert change["detail"] == "Version 1 already serves; nothing was changed."
    with database.reading() as session:
        assert read_generation(session) == before


@on_sqlite
def test_an_alias_that_somebody_moved_in_mlflow_is_told(
    client: TestClient, registry: Registry, replica: PlayedReplica
) -> None:
    """One trains, moves champion in MLflow, promotes champion, and nothing happens."""
    promoted(client, "1")
    wait_until(lambda: registry.aliases("flights").get("champion") == "1", "MLflow to show it", 20)
    registry.set_alias("flights", "champion", "2")
    change = promoted(client, "champion")
    assert change["target"] == "1"
    said = "Version 1 already serves; nothing was changed. In MLflow 'champion' is version 2: promote it by its number."
    assert change["detail"] == promote(client, "champion", dry_run=True).json()["detail"] == said


@on_sqlite
def test_an_alias_that_mlflow_does_not_show_yet_is_nobodys_move(
    services: Services, registry: Registry, replica: PlayedReplica
) -> None:
    """Right after a promotion the answer would advise to promote the version that was just replaced."""
    registry.set_alias("flights", "champion", "1")
    drive(services, services.changes.promote(wish("2")).id, until="succeeded")
    again = services.changes.promote(wish("champion"))
    drive(services, again.id, until="succeeded")
    assert services.changes.find(again.id).detail == "Version 2 already serves; nothing was changed."


def test_a_replica_that_cannot_load_it_rejects_the_change(
    client: TestClient, database: Database, replica: PlayedReplica
) -> None:
    """A broken pickle must cost nothing: the old version serves on, and the reason is told."""
    promoted(client, "1")
    replica.refuses["2"] = "ModuleNotFoundError: No module named 'wizardry'"
    change = ended(client, promote(client, "2").json())
    assert change["state"] == "rejected"
    assert f"{replica.name}: ModuleNotFoundError" in change["detail"]
    assert change["steps"][-1]["evidence"]["replicas"][replica.name]["reason"] == replica.refuses["2"]
    assert (change["steps"][-1]["name"], change["steps"][-1]["state"]) == ("preparing", "failed")
    assert routes(database) == [Route("1", 1.0)]
    assert wanted(database) == {"1": False}


def test_a_version_that_was_refused_can_be_tried_again(client: TestClient, replica: PlayedReplica) -> None:
    """After the missing package was installed; the replica remembers the attempt that failed."""
    replica.refuses["1"] = "no such module"
    assert ended(client, promote(client, "1").json())["state"] == "rejected"
    replica.refuses.clear()
    promoted(client, "1")
    assert len({attempt for _, attempt in replica.attempts}) == len(replica.attempts) == 2


@on_sqlite
def test_every_live_replica_must_be_ready_and_a_dead_one_does_not_count(
    client: TestClient, database: Database, replica: PlayedReplica
) -> None:
    """Traffic on a replica that has not loaded the version would be answered with errors."""
    with PlayedReplica(database, "127.0.0.1:8001") as other, PlayedReplica(database, "127.0.0.1:8002") as dead:
        dead.loads = other.loads = False
        dead.die()
        dead.age(6)
        change = promote(client, "1").json()
        wait_until(lambda: other.attempts, "the second one to be asked", 10)
        wait_until(lambda: client.get(f"/ml/changes/{change['id']}").json()["state"] == "preparing", "preparing", 10)
        assert routes(database) == []
        other.loads = True
        done = ended(client, change)
    assert (done["state"], len(done["steps"][1]["evidence"]["replicas"])) == ("succeeded", 2)


@on_sqlite
def test_without_a_replica_it_is_rejected_saying_so(client: TestClient, database: Database) -> None:
    """Somebody forgot to start the data plane."""
    change = ended(client, promote(client, "1").json())
    assert change["state"] == "rejected"
    assert "No data plane is running" in change["detail"]
    assert wanted(database) == {}


@on_sqlite
def test_a_load_that_never_ends_is_given_up(client: TestClient, replica: PlayedReplica, database: Database) -> None:
    """A change that hangs would block every later one, the rollback too."""
    replica.loads = False
    change = ended(client, promote(client, "1").json())
    assert (change["state"], routes(database)) == ("rejected", [])
    assert f"Not ready after 2 s (at most 2 s): {replica.name}" in change["detail"]


@on_sqlite
def test_replicas_that_do_not_apply_the_routes_fail_it_and_are_named(
    client: TestClient, replica: PlayedReplica, database: Database
) -> None:
    """Half of the traffic on the old version is no success, and a person has to know where it goes."""
    replica.applies = False
    change = ended(client, promote(client, "1").json())
    assert change["state"] == "failed"
    assert "The routes lead to version 1." in change["detail"]
    assert replica.name in change["detail"]
    assert routes(database) == [Route("1", 1.0)]


@on_sqlite
@pytest.mark.parametrize(
    ("target", "status", "error"),
    [("9", 404, "VersionNotFound"), ("nobody", 404, "AliasNotFound"), ("../1", 422, "InvalidVersionReference")],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_unknown_target_is_refused_at_once(
    patient_client: TestClient, target: str, status: int, error: str, dry_run: bool
) -> None:
    """A typing error is answered now, not found in a record later; and a plan of it says the same."""
    answer = promote(patient_client, target, dry_run=dry_run)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert patient_client.get("/ml/changes").json()["items"] == []


@on_sqlite
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_unknown_model_is_refused_at_once(patient_client: TestClient, dry_run: bool) -> None:
    """Naming those that there are."""
    answer = promote(patient_client, "1", "fligths", dry_run=dry_run)
    assert (answer.status_code, answer.json()["known"]) == (404, ["flights"])


@on_sqlite
def test_a_plan_without_a_registry_says_that_it_cannot_be_asked(client: TestClient, registry: Registry) -> None:
    """Whether there is such a version is not known: neither 404 nor planned would be true."""
    registry.is_down = True
    planned = promote(client, "2", dry_run=True)
    assert (planned.status_code, planned.json()["state"]) == (200, "rejected")
    assert planned.json()["steps"][0]["evidence"]["checks"][0]["error"] == "RegistryUnreachable"


@on_sqlite
def test_asking_never_waits_for_a_registry_that_hangs(
    client: TestClient, registry: Registry, replica: PlayedReplica
) -> None:
    """On the day MLflow hangs, what is kept here can still be promoted, and the caller is answered at once."""
    promoted(client, "1")
    promoted(client, "2")
    with registry.hanging():
        started = time.monotonic()
        unknown = promote(client, "3")
        spent = time.monotonic() - started
        assert (unknown.status_code, unknown.json()["state"]) == (202, "requested")
        assert spent < 1.0  # 0.15 s of waiting; the rest is a busy machine
    assert ended(client, unknown.json())["state"] == "succeeded"


@on_sqlite
def test_a_target_that_shows_to_be_unknown_later_is_rejected(
    client: TestClient, registry: Registry, replica: PlayedReplica
) -> None:
    """What could not be answered at once is on record with its reason."""
    with registry.hanging():
        change = promote(client, "9").json()
    done = ended(client, change)
    assert (done["state"], done["steps"][0]["evidence"]["checks"][0]["error"]) == ("rejected", "VersionNotFound")


@on_sqlite
def test_a_version_that_differs_from_its_digest_is_rejected(
    client: TestClient, services: Services, registry: Registry, replica: PlayedReplica, database: Database
) -> None:
    """Damaged bytes may load without a complaint; only the digest tells."""
    services.versions.prepare("flights", "2")
    with database.reading() as session:
        digest = session.get_one(ModelVersionRow, ("flights", "2")).digest
    artifact = services.artifacts.find(digest)
    assert artifact is not None
    file = artifact.folder / "MLmodel"
    file.chmod(0o600)
    file.write_bytes(b"something else")
    registry.delete_files("flights", "2")
    change = ended(client, promote(client, "2").json())
    assert (change["state"], routes(database)) == ("rejected", [])
    checks = change["steps"][0]["evidence"]["checks"]
    assert [(each["name"], each["passed"]) for each in checks] == [("target", True), ("digest", False)]


@on_sqlite
def test_a_signature_that_cannot_be_validated_is_rejected(
    client: TestClient, registry: Registry, replica: PlayedReplica
) -> None:
    """Such a version would take whatever it is sent."""
    version = registry.add(inputs={"inputs": [{"name": "x", "type": "no_such_type", "required": True}]})
    change = ended(client, promote(client, version).json())
    assert change["state"] == "rejected"
    assert change["steps"][0]["evidence"]["checks"][2]["error"] == "SignatureNotSupported"


@on_sqlite
def test_a_changed_signature_is_a_warning(client: TestClient, registry: Registry, replica: PlayedReplica) -> None:
    """It is often meant, but whoever looks afterwards why callers get 422 must find it."""
    version = registry.add(inputs=signature(*COLUMNS[1:], {"name": "humid", "type": "double", "required": True}))
    promoted(client, "1")
    change = promoted(client, version)
    check = next(each for each in change["steps"][0]["evidence"]["checks"] if each["name"] == "signature_change")
    assert (check["warning"], check["required_added"], check["removed"]) == (True, ["humid"], ["temp"])


@on_sqlite
def test_a_version_below_the_threshold_is_rejected_unless_gates_are_skipped(
    client: TestClient, replica: PlayedReplica
) -> None:
    """performance_threshold keeps bad versions out."""
    assert client.put("/ml/models/flights/config", json={"performance_threshold": 0.7}).status_code == 200
    change = ended(client, promote(client, "3").json())
    assert change["state"] == "rejected"
    assert "accuracy 0.6 is below the model's performance_threshold 0.7" in change["detail"]
    skipped = ended(client, promote(client, "3", skip_gates=True).json())
    assert skipped["state"] == "succeeded"
    assert "Skipped as asked" in json.dumps(skipped["steps"][0]["evidence"])


@on_sqlite
def test_a_second_change_is_refused_naming_the_first(client: TestClient, replica: PlayedReplica) -> None:
    """Two at once would tear the routes between them."""
    replica.loads = False
    first = promote(client, "1").json()
    second = promote(client, "2")
    assert (second.status_code, second.json()["error"]) == (409, "ChangeUnderWay")
    assert second.json()["change_id"] == first["id"]
    replica.loads = True
    assert ended(client, first)["state"] == "succeeded"


def test_of_many_that_ask_at_once_one_gets_it(services: Services) -> None:
    """The database decides, not the order of two reads."""
    start, outcomes = threading.Barrier(8), []

    def ask() -> None:
        start.wait(10)
        try:
            outcomes.append(services.changes.promote(wish()).id)
        except ChangeUnderWay as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert sorted(outcomes)[1:] == ["ChangeUnderWay"] * 7


def test_the_same_key_gives_the_same_change(client: TestClient, replica: PlayedReplica) -> None:
    """A caller that lost the answer asks again without fear."""
    key = {"Idempotency-Key": "release-7"}
    body = {"target": "1", "reason": "release"}
    first = client.post("/ml/models/flights/promote", json=body, headers=key).json()
    ended(client, first)
    again = client.post("/ml/models/flights/promote", json=body, headers=key)
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (202, first["id"], "succeeded")
    other = client.post("/ml/models/flights/promote", json=body | {"target": "2"}, headers=key)
    assert (other.status_code, other.json()["error"]) == (422, "IdempotencyKeyReused")


@on_sqlite
def test_a_dry_run_checks_and_writes_nothing(client: TestClient, database: Database, replica: PlayedReplica) -> None:
    """People look before they leap."""
    client.put("/ml/models/flights/config", json={"performance_threshold": 0.7})
    with database.reading() as session:
        before = read_generation(session)
    answer = promote(client, "2", dry_run=True)
    planned = answer.json()
    assert (answer.status_code, planned["state"], planned["id"]) == (200, "planned", "dry-run")
    assert [each["step"] for each in planned["plan"]] == ["checking", "preparing", "shifting", "verifying"]
    assert [each["name"] for each in planned["steps"][0]["evidence"]["checks"]] == [
        "target", "digest", "signature", "signature_change", "performance_threshold",
    ]  # fmt: skip
    assert promote(client, "3", dry_run=True).json()["state"] == "rejected"
    assert client.get(f"/ml/changes/{planned['id']}").status_code == 404
    assert client.get("/ml/changes").json()["items"] == []
    with database.reading() as session:
        assert read_generation(session) == before
        assert session.exec(select(ModelVersionRow)).all() == []


@on_sqlite
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"target": "1"}, "reason"),
        ({"reason": "x"}, "target"),
        ({"target": "1", "reason": "x", "tarlet": 1}, "tarlet"),
        ({"target": "1", "reason": "x", "mode": "fast"}, "mode"),
        ({"target": "1", "reason": "x", "stages": [0]}, "stages.0"),
        ({"target": "1", "reason": "x", "approval": True}, "approval"),
        ({"target": "1", "reason": "nul \u0000"}, "reason"),
    ],
)
def test_a_wrong_wish_names_the_field(client: TestClient, body: dict[str, Any], path: str) -> None:
    """An option that is misspelled or not to be had yet must not be ignored in silence."""
    answer = client.post("/ml/models/flights/promote", json=body)
    assert answer.status_code == 422
    assert [each["path"] for each in answer.json()["fields"]] == [path]


@on_sqlite
@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_is_400(client: TestClient, body: bytes) -> None:
    """As on the data plane: the text is wrong, not a field."""
    answer = client.post("/ml/models/flights/promote", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, "NotJson")


def test_a_change_can_be_cancelled_until_traffic_moves(
    client: TestClient, replica: PlayedReplica, database: Database
) -> None:
    """Somebody notices the wrong version while it still loads."""
    replica.loads = False
    change = promote(client, "1").json()
    wait_until(lambda: client.get(f"/ml/changes/{change['id']}").json()["state"] == "preparing", "preparing", 10)
    answer = client.post(f"/ml/changes/{change['id']}/cancel", json={"reason": "wrong one", "by": "ada"})
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert answer.json()["detail"] == "Cancelled by ada: wrong one"
    assert answer.json()["steps"][-1]["state"] == "skipped"
    assert wanted(database) == {}
    replica.loads = True
    promoted(client, "2")  # the model is free again
    assert routes(database) == [Route("2", 1.0)]
    late = client.post(f"/ml/changes/{change['id']}/cancel", json={"reason": "again", "by": "ada"})
    assert (late.status_code, late.json()["error"], late.json()["state"]) == (409, "ChangeMovedOn", "cancelled")
    missing = client.post("/ml/changes/nothing/cancel", json={"reason": "x", "by": "ada"})
    assert (missing.status_code, missing.json()["error"]) == (404, "ChangeNotFound")


def test_a_cancel_during_a_long_step_holds(
    client: TestClient, registry: Registry, replica: PlayedReplica, database: Database
) -> None:
    """The step that ends after the cancel must not do its deed: the version would be loaded for nobody."""
    with registry.hanging():
        change = promote(client, "1").json()
        wait_until(lambda: client.get(f"/ml/changes/{change['id']}").json()["state"] == "checking", "checking", 10)
        client.post(f"/ml/changes/{change['id']}/cancel", json={"reason": "wrong one", "by": "ada"})
    promoted(client, "2")
    assert client.get(f"/ml/changes/{change['id']}").json()["state"] == "cancelled"
    assert wanted(database) == {"2": False}


@on_sqlite
def test_a_cancel_before_anything_was_loaded_releases_nothing(
    client: TestClient, services: Services, registry: Registry, replica: PlayedReplica, database: Database
) -> None:
    """What the warm-up flow has loaded would not be warm any more, because somebody thought better of promoting it."""
    assert services.preparation.prepare("flights", "1").is_ready
    with registry.hanging():
        change = promote(client, "1").json()
        wait_until(lambda: client.get(f"/ml/changes/{change['id']}").json()["state"] == "checking", "checking", 10)
        client.post(f"/ml/changes/{change['id']}/cancel", json={"reason": "wrong one", "by": "ada"})
        assert wanted(database) == {"1": False}


@on_sqlite
def test_what_a_change_failed_with_is_nothing_to_go_back_to(
    client: TestClient, replica: PlayedReplica, services: Services
) -> None:
    """It was never shown to be good; and what was, is not what the change before had come from."""

    def good() -> tuple[str, str] | None:
        found = services.standings.read("flights").last_known_good
        return (found.version, found.change_id) if found else None

    promoted(client, "1")
    assert good() is None
    second = promoted(client, "2")
    assert good() == ("1", second["id"])
    replica.applies = False
    third = ended(client, promote(client, "3", skip_gates=True).json())
    assert (third["state"], good()) == ("failed", ("2", third["id"]))
    replica.applies = True
    promoted(client, "3")  # serves already, and nobody has verified it by that
    fourth = promoted(client, "1")
    assert fourth["source"] == "3"
    assert good() == ("2", third["id"])


@on_sqlite
def test_the_change_that_took_the_traffic_is_the_one_that_moved_it(
    services: Services, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that failed before it touched the routes would be blamed, and the way back would begin at the wrong place."""
    with PlayedReplica(database) as replica:
        drive(services, services.changes.promote(wish("1")).id, until="succeeded")
        stopped = services.changes.promote(wish("3", skip_gates=True))
        drive(services, stopped.id, until="shifting")
        with monkeypatch.context() as patched:
            patched.setattr("control_plane.rollback.executor.write_routes", _broken)
            services.executor.advance(stopped.id)
        assert (services.changes.find(stopped.id).state, routes(database)) == ("failed", [Route("1", 1.0)])
        assert wanted(database) == {"1": False}  # it was loaded for nothing
        second = services.changes.promote(wish("2"))
        drive(services, second.id, until="succeeded")
        assert replica.attempts
    good = services.standings.read("flights").last_known_good
    assert good is not None
    assert (good.version, good.change_id) == ("1", second.id)


@on_sqlite
def test_the_source_on_record_is_what_served_when_traffic_moved(
    services: Services, database: Database, replica: PlayedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routes that were written between the last look and the shift would be forgotten, `previous` with them."""
    drive(services, services.changes.promote(wish("1")).id, until="succeeded")
    drive(services, services.changes.promote(wish("3", skip_gates=True)).id, until="succeeded")
    change = services.changes.promote(wish("2"))
    assert change.source == "3"
    drive(services, change.id, until="shifting")

    def overtaken(session: Session, row: ChangeRow, after: str, **values: Any) -> bool:
        if after == "verifying":
            lease = take_lease(session, lease_name("flights"), services.executor._holder, 5)
            write_routes(session, lease, "flights", [Route("1", 1.0)], reason="by hand", aliases={"champion": "1"})
        return move_change(session, row, after, **values)

    monkeypatch.setattr("control_plane.rollback.executor.move_change", overtaken)
    drive(services, change.id, until="succeeded")
    done = services.changes.find(change.id)
    assert (done.source, done.steps[2].evidence["routes_before"]) == ("1", {"1": 1.0})
    with database.reading() as session:
        assert wanted_aliases(session) == {"flights": {"champion": "2", "previous": "1"}}


@on_sqlite
def test_once_traffic_moves_it_cannot_be_cancelled(services: Services, replica: PlayedReplica) -> None:
    """Cancelled means that nothing was touched; a cancel in between would be a lie."""
    change = services.changes.promote(wish())
    drive(services, change.id, until="shifting")
    with pytest.raises(ChangeMovedOn):
        services.changes.cancel(change.id, reason="late", by="ada")
    drive(services, change.id, until="succeeded")


@pytest.mark.parametrize("state", ["requested", "checking", "preparing", "shifting", "verifying"])
def test_whoever_comes_next_finishes_what_a_killed_control_plane_left(
    database: Database, registry: Registry, tmp_path: Path, replica: PlayedReplica, state: str
) -> None:
    """A kill between any two steps loses nothing: each step is on record before the next begins."""
    killed = make_services(database, registry, tmp_path, pace=replace(QUICK, lease=0.5))
    change = killed.changes.promote(wish())
    drive(killed, change.id, until=state)
    killed.close()
    heir = make_services(database, registry, tmp_path)
    with running(heir) as client:
        done = ended(client, {"id": change.id})
    assert (done["state"], routes(database)) == ("succeeded", [Route("1", 1.0)])
    assert [step["name"] for step in done["steps"]] == ["checking", "preparing", "shifting", "verifying"]


@on_sqlite
@pytest.mark.parametrize("state", ["preparing", "verifying"])
def test_after_an_outage_replicas_get_their_time_anew(
    database: Database, registry: Registry, tmp_path: Path, state: str
) -> None:
    """Everything was restarted: the control plane looks first, and the data plane is there seconds later."""
    killed = make_services(database, registry, tmp_path, pace=replace(QUICK, lease=0.1))
    change = killed.changes.promote(wish())
    with PlayedReplica(database, loads=state == "verifying") as replica:
        drive(killed, change.id, until=state)
    killed.close()
    replica.age(3600)
    with database.writing() as session:
        for step in session.exec(select(ChangeStepRow)):
            step.started_at -= timedelta(hours=1)
            session.add(step)
    heir = make_services(database, registry, tmp_path)
    wait_until(lambda: _looked(heir, change.id), "the lease of the killed one to end", 10)
    assert heir.changes.find(change.id).state == state
    with PlayedReplica(database):
        drive(heir, change.id, until="succeeded")
    heir.close()


@on_sqlite
def test_what_another_took_over_is_forgotten(
    database: Database, services: Services, registry: Registry, tmp_path: Path
) -> None:
    """A control plane that loses its lease now and then would remember every change of its life."""
    now = [0.0]
    checks = TargetChecks(services.database, services.versions)
    executor = Executor(services.database, checks, replace(QUICK, lease=0.1), "us", clock=lambda: now[0])
    ours = replace(services, executor=executor)
    registry.add("churn")
    for model_id in ("flights", "churn"):
        change_id = services.changes.promote(replace(wish(), model_id=model_id)).id
        with PlayedReplica(database, loads=False):
            drive(ours, change_id, until="preparing")
            executor.advance(change_id)
        assert list(executor._waiting) == [change_id]
        wait_until(partial(_looked, services, change_id), "the lease to end", 10)
        now[0] += 60


def _looked(services: Services, change_id: str) -> bool:
    try:
        return services.executor.advance(change_id)
    except LeaseHeld:
        return False


def test_a_step_that_was_killed_in_the_middle_has_not_happened(
    database: Database, services: Services, replica: PlayedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routes, state and evidence stand together or not at all."""
    change = services.changes.promote(wish())
    drive(services, change.id, until="shifting")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("control_plane.rollback.executor.close_step", killed)
        services.executor.advance(change.id)
    assert (services.changes.find(change.id).state, routes(database)) == ("shifting", [])
    drive(services, change.id, until="succeeded")


def test_a_change_that_another_advances_is_left_alone(
    database: Database, services: Services, registry: Registry, tmp_path: Path, replica: PlayedReplica
) -> None:
    """Two control planes on one database must not both write."""
    other = make_services(database, registry, tmp_path)
    change = services.changes.promote(wish())
    services.executor.advance(change.id)
    with pytest.raises(LeaseHeld):
        other.executor.advance(change.id)
    other.close()
    drive(services, change.id, until="succeeded")
    with database.writing() as session:  # given back at the end, not when it expires
        assert take_lease(session, lease_name("flights"), "somebody else", 1).token


@on_sqlite
def test_while_a_long_step_lasts_the_lease_is_kept(
    client: TestClient, database: Database, registry: Registry, replica: PlayedReplica
) -> None:
    """Copying a large version takes minutes; another control plane would begin it anew after ten seconds."""
    with registry.hanging():
        change = promote(client, "1").json()

        def expiry() -> int:
            with database.reading() as session:
                row = session.get(LeaseRow, lease_name("flights"))
                return row.expires_at_ms if row else 0

        first = wait_until(expiry, "the lease to be taken", 10)
        wait_until(lambda: expiry() > first, "the lease to be renewed", 10)
    assert ended(client, change)["state"] == "succeeded"


@on_sqlite
def test_another_models_change_does_not_wait_for_one_that_hangs(
    client: TestClient, registry: Registry, replica: PlayedReplica
) -> None:
    """A registry that hangs on one model's version must not hold up the others."""
    registry.add("churn", metrics={"accuracy": 0.9})
    with registry.hanging("flights"):
        stuck = promote(client, "1").json()
        promoted(client, "1", "churn")
    assert ended(client, stuck)["state"] == "succeeded"


@on_sqlite
def test_what_nobody_foresaw_ends_the_change_instead_of_repeating_for_ever(
    client: TestClient, services: Services, replica: PlayedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours must not block the model until somebody restarts everything."""

    monkeypatch.setattr(services.versions, "prepare", _broken)
    change = ended(client, promote(client, "1").json())
    assert (change["state"], change["detail"]) == (
        "rejected",
        "While checking: unexpected ZeroDivisionError; see the log",
    )


@on_sqlite
def test_what_ends_unforeseen_while_it_loads_is_not_kept_loaded(
    services: Services, database: Database, replica: PlayedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker would hold a version that nobody wants, for good."""
    change = services.changes.promote(wish())
    drive(services, change.id, until="preparing")
    assert wanted(database) == {"1": False}
    monkeypatch.setattr("control_plane.rollback.executor.judge_preparation", _broken)
    services.executor.advance(change.id)
    assert services.changes.find(change.id).state == "rejected"
    assert wanted(database) == {}


@on_sqlite
def test_what_a_model_says_of_its_example_is_on_record_and_in_no_log(
    services: Services, replica: PlayedReplica
) -> None:
    """A warm-up that fails quotes the row it failed on; logs are read by people who may not see rows."""
    replica.refuses["1"] = "could not convert 'Ada Lovelace' to float"
    with capture_logs() as logged:
        change = services.changes.promote(wish())
        drive(services, change.id, until="rejected")
    assert "Ada Lovelace" in services.changes.find(change.id).detail
    assert [each["after"] for each in logged if each["event"] == "change moves"][-1] == "rejected"
    assert "Lovelace" not in str(logged)


def _broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError


def test_the_last_few_versions_stay_warm(
    client: TestClient, database: Database, registry: Registry, replica: PlayedReplica
) -> None:
    """Going back must be quick, and memory is not endless."""
    registry.add()
    for version in ("1", "2", "3", "4"):
        promoted(client, version)
    assert wanted(database) == {"2": False, "3": True, "4": False}


def test_changes_are_listed_newest_first_and_filtered(
    client: TestClient, registry: Registry, replica: PlayedReplica
) -> None:
    """What happened to this model lately?"""
    registry.add("churn")
    replica.refuses["3"] = "broken"
    for version in ("1", "2"):
        promoted(client, version)
    ended(client, promote(client, "3").json())
    promoted(client, "1", "churn")
    listed = client.get("/ml/changes").json()["items"]
    assert [(each["model_id"], each["target"]) for each in listed] == [
        ("churn", "1"), ("flights", "3"), ("flights", "2"), ("flights", "1"),
    ]  # fmt: skip
    of_model = client.get("/ml/changes", params={"model_id": "flights", "state": "succeeded", "limit": 1}).json()
    assert ([each["target"] for each in of_model["items"]], of_model["next"]) == (["2"], listed[2]["id"])
    rest = client.get("/ml/changes", params={"model_id": "flights", "before": of_model["next"]}).json()
    assert ([each["target"] for each in rest["items"]], rest["next"]) == (["1"], None)
    assert client.get("/ml/changes", params={"state": "bored"}).status_code == 422
    assert client.get("/ml/changes/nothing").json()["error"] == "ChangeNotFound"


@on_sqlite
def test_log_lines_of_a_change_carry_its_id(services: Services, replica: PlayedReplica) -> None:
    """One id leads from the record to everything that was logged about it."""
    from structlog.contextvars import merge_contextvars

    with capture_logs([merge_contextvars]) as logged:
        change = services.changes.promote(wish())
        drive(services, change.id, until="succeeded")
    moves = [entry for entry in logged if entry["event"] == "change moves"]
    assert [entry["after"] for entry in moves][-1] == "succeeded"
    assert {entry["change_id"] for entry in moves} == {change.id}


@on_sqlite
def test_steps_are_written_before_they_are_done(services: Services, database: Database) -> None:
    """After a crash the record must say what was about to happen."""
    change = services.changes.promote(wish())
    services.executor.advance(change.id)
    with database.reading() as session:
        (step,) = session.exec(select(ChangeStepRow)).all()
        row = session.get_one(ChangeRow, change.id)
    assert (step.name, step.state, step.ended_at, row.state) == ("checking", "running", None, "checking")


@on_sqlite
def test_preparing_for_nobody_but_warmth(services: Services, database: Database, replica: PlayedReplica) -> None:
    """The warm-up flow has a version loaded everywhere without routing to it, and sees each replica's timings."""
    seen: list[Progress] = []
    done = services.preparation.prepare("flights", "2", seen.append)
    assert done.is_ready
    assert done.progress.replicas[replica.name]["warmup_seconds"] == [0.01]
    assert (seen[-1], wanted(database), routes(database)) == (done.progress, {"2": False}, [])
    replica.refuses["1"] = "broken"
    failed = services.preparation.prepare("flights", "1")
    assert (failed.is_ready, failed.progress.reason) == (False, f"{replica.name}: broken")
    assert wanted(database) == {"2": False}
