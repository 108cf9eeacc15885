"""Changes and statuses as data: the table of transitions, the gates, and what replicas' reports come to."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.monitoring.example import infer_request
from control_plane.monitoring.health import Finding, following
from control_plane.preparation import Waiting
from control_plane.replicas import (
    MEANING,
    HeldVersion,
    ModelStatus,
    Patience,
    Replica,
    Verdict,
    Waited,
    judge_applied,
    judge_preparation,
    status_of,
)
from control_plane.rollback import states
from control_plane.rollback.gates import compare_signatures, judge_metric
from control_plane.rollback.plan import plan_of
from control_plane.rollback.record import Step, durations_of
from control_plane.rollback.states import TRANSITIONS, ChangeState, can_be_cancelled, has_ended, way_out
from control_plane.storage.tables import HealthProbeRow
from serving.input_schema import InputSchema
from serving.routing import Route

NOW = datetime(2013, 4, 1, tzinfo=UTC)
ROUTED = [Route("2", 0.75), Route("1", 0.25)]


def replica(
    name: str = "a", *, age: float = 0.0, revision: int = 7, v1: str | None = None, v2: str | None = None
) -> Replica:
    """`v1` and `v2`: what it says of the versions 1 and 2, if anything."""
    said = {"1": v1, "2": v2}
    held = {("flights", each): HeldVersion(state, 3, None, {}, NOW) for each, state in said.items() if state}
    return Replica(name, f"http://{name}", NOW, NOW, age, 1, {"flights": revision}, [], held)


def stands(*replicas: Replica, probes_fail: bool = False) -> str:
    return status_of("flights", ROUTED, 7, replicas, probes_fail=probes_fail).value


def test_the_table_is_whole() -> None:
    """A state without an entry, a sentence or a way to an end would leave a change hanging for ever."""
    assert set(TRANSITIONS) == set(ChangeState) == set(states.MEANING)
    ends = {state for state in ChangeState if has_ended(state)}
    assert ends == {ChangeState.SUCCEEDED, ChangeState.REJECTED, ChangeState.CANCELLED, ChangeState.FAILED}
    reached = {ChangeState.REQUESTED}
    while (more := reached.union(*(TRANSITIONS[state] for state in reached))) != reached:
        reached = more
    assert reached == set(ChangeState)
    for state in set(ChangeState) - ends:
        assert way_out(state) in TRANSITIONS[state]


def test_nothing_is_called_off_or_rejected_once_traffic_may_have_moved() -> None:
    """Both promise that what served before serves on untouched."""
    assert [state for state in ChangeState if can_be_cancelled(state)] == ["requested", "checking", "preparing"]
    for state in (ChangeState.SHIFTING, ChangeState.VERIFYING):
        assert way_out(state) is ChangeState.FAILED


def test_steps_that_the_table_does_not_have_are_refused() -> None:
    """A mistake of ours must not put a change where no table says it can be."""
    with pytest.raises(ValueError, match="no change goes from requested to shifting"):
        states.require_transition(ChangeState.REQUESTED, ChangeState.SHIFTING)


def test_every_status_is_explained() -> None:
    """They are shown on every page."""
    assert set(MEANING) == set(ModelStatus)


@pytest.mark.parametrize(
    ("replicas", "status"),
    [
        ([], "down"),
        ([replica(v1="ready", v2="ready")], "ready"),
        ([replica(v1="ready", v2="ready"), replica("b", v1="ready", v2="ready")], "ready"),
        ([replica(v1="ready", v2="ready"), replica("b", v1="ready", v2="loading")], "degraded"),
        ([replica(v1="ready", v2="ready"), replica("b")], "degraded"),
        ([replica(v1="ready", v2="ready", revision=6)], "degraded"),
        ([replica(v1="ready", v2="failed")], "degraded"),
        ([replica(v1="failed", v2="failed")], "down"),
        ([replica(v1="failed", v2="loading")], "loading"),
        ([replica()], "loading"),
        ([replica(v1="ready", v2="ready", age=5.0)], "down"),
        ([replica(v1="ready", v2="ready", age=4.9)], "ready"),
        ([replica(v1="ready", v2="ready"), replica("b", age=60)], "ready"),
    ],
)
def test_how_a_model_stands(replicas: list[Replica], status: str) -> None:
    """Whoever is on call reads this one word first."""
    assert stands(*replicas) == status


def test_failing_probes_count_as_much_as_they_say() -> None:
    """Replicas that believe themselves ready while nobody gets an answer are not."""
    whole = replica(v1="ready", v2="ready")
    assert stands(whole, probes_fail=True) == "down"
    assert stands(whole, replica("b", v1="ready", v2="ready"), probes_fail=True) == "degraded"
    assert status_of("flights", [], 0, [whole], probes_fail=True) is ModelStatus.UNSERVED


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.integers(5, 8), st.sampled_from(["ready", "loading", "failed", None])),
        max_size=4,
    ),
    st.booleans(),
)
def test_ready_is_never_said_too_early(told: list[tuple[float, int, str | None]], probes_fail: bool) -> None:
    """`ready` is what automation waits for: all live replicas, every routed version, the latest routes."""
    replicas = [
        replica(str(at), age=age, revision=revision, v1=state, v2=state)
        for at, (age, revision, state) in enumerate(told)
    ]
    status = stands(*replicas, probes_fail=probes_fail)
    live = [each for each in replicas if each.is_live]
    complete = bool(live) and all(
        each.has_applied("flights", 7) and each.holds("flights", "1") and each.holds("flights", "2") for each in live
    )
    assert (status == "ready") == (complete and not probes_fail)


def after(seconds: float) -> Waited:
    return Waited(seconds, seconds, seconds)


def test_an_older_attempt_is_no_answer() -> None:
    """What a replica said of the load before this one tells nothing of this one."""
    patience = Patience(replica=30, ready=300)
    said = judge_preparation([replica(v2="failed")], "flights", "2", 4, after(1.0), patience)
    assert (said.verdict, said.replicas["a"]) == (Verdict.WAITING, {"state": "waiting"})
    assert judge_preparation([replica(v2="failed")], "flights", "2", 3, after(1.0), patience).verdict is Verdict.REFUSED
    assert judge_preparation([replica(v2="ready")], "flights", "2", 3, after(1.0), patience).verdict is Verdict.DONE
    assert judge_preparation([], "flights", "2", 3, after(29.9), patience).verdict is Verdict.WAITING
    assert judge_preparation([], "flights", "2", 3, after(30.0), patience).verdict is Verdict.REFUSED
    assert judge_preparation([replica()], "flights", "2", 3, after(300.0), patience).verdict is Verdict.REFUSED


def test_a_replica_that_restarts_meanwhile_is_waited_for() -> None:
    """One that crashed in the fifth minute would refuse the version at once, though it is back in a second."""
    patience = Patience(replica=30, ready=300)
    assert judge_preparation([], "flights", "2", 3, Waited(250, 1, 0), patience).verdict is Verdict.WAITING
    assert judge_preparation([], "flights", "2", 3, Waited(250, 30, 0), patience).verdict is Verdict.REFUSED


def test_an_evicted_version_is_refused_with_its_reason() -> None:
    """It was waited for until the time was up, and nobody was told that memory did not do."""
    held = HeldVersion("evicted", 3, "others were wanted later", {}, NOW)
    full = Replica("a", "http://a", NOW, NOW, 0.0, 1, {}, [], {("flights", "2"): held})
    said = judge_preparation([full], "flights", "2", 3, after(1.0), Patience())
    assert (said.verdict, said.reason) == (Verdict.REFUSED, "a: others were wanted later")


def test_only_time_in_which_somebody_looked_counts() -> None:
    """After an outage the first look would refuse everything, before any replica is back."""
    now = [100.0]
    waiting = Waiting(lambda: now[0])
    now[0] += 4
    assert waiting.look([]) == Waited(4, 4, 0)
    now[0] += 3600
    assert waiting.has_lapsed
    assert waiting.look([]) == Waited(0, 0, 0)
    now[0] += 2
    assert waiting.look([replica()]) == Waited(2, 0, 2)
    now[0] += 3
    assert waiting.look([]) == Waited(5, 3, 0)
    assert not waiting.has_lapsed


@pytest.mark.parametrize("state", ["loading", "failed"])
def test_loading_anew_takes_nothing_from_what_serves(state: str) -> None:
    """A look at a model that is warmed again showed it down, while it answered every request."""
    held = HeldVersion(state, 4, None, {"held": True}, NOW)
    serving = Replica("a", "http://a", NOW, NOW, 0.0, 1, {"flights": 7}, [], {("flights", "1"): held})
    assert status_of("flights", [Route("1", 1.0)], 7, [serving], probes_fail=False) == "ready"
    # whoever asked for it anew still waits for the answer
    said = judge_preparation([serving], "flights", "1", 4, after(1.0), Patience())
    assert said.verdict is (Verdict.WAITING if state == "loading" else Verdict.REFUSED)


def test_applied_needs_somebody_who_has() -> None:
    """When every replica has died meanwhile, nothing was shifted for anybody."""
    patience = Patience(replica=30, applied=15)
    assert judge_applied([], "flights", 7, after(15.0), patience).verdict is Verdict.WAITING
    refused = judge_applied([], "flights", 7, after(30.0), patience)
    assert refused.verdict is Verdict.REFUSED
    assert "No data plane is running that could apply the routes of revision 7" in refused.reason
    assert judge_applied([replica(revision=6)], "flights", 7, after(1.0), patience).verdict is Verdict.WAITING
    assert judge_applied([replica(revision=8)], "flights", 7, after(1.0), patience).verdict is Verdict.DONE


def test_a_replica_that_comes_late_gets_its_time_to_apply() -> None:
    """Everything restarts, the data plane last: the change failed in the moment in which the replica was there."""
    patience, behind = Patience(replica=30, applied=15), [replica(revision=6)]
    assert judge_applied(behind, "flights", 7, Waited(29, 0, 1), patience).verdict is Verdict.WAITING
    refused = judge_applied(behind, "flights", 7, Waited(40, 0, 15), patience)
    assert (refused.verdict, "after 15 s by: a." in refused.reason) == (Verdict.REFUSED, True)
    # one that crashes over and over is never there for so long
    assert judge_applied(behind, "flights", 7, Waited(45, 0, 3), patience).verdict is Verdict.REFUSED


@pytest.mark.parametrize(
    ("metrics", "passed", "metric"),
    [
        ({"accuracy": 0.7}, True, "accuracy"),
        ({"accuracy": 0.69}, False, "accuracy"),
        ({"val_accuracy": 0.69}, False, "val_accuracy"),
        ({"accuracy": 0.8, "val_accuracy": 0.1}, True, "accuracy"),
        ({"r2_score": 0.69, "rmse": 3.0}, False, "r2_score"),
        ({"training_accuracy_score": 0.1}, True, None),
        ({"brier": 0.1}, True, None),
        ({"accuracy": None}, True, None),
        ({}, True, None),
    ],
)
def test_the_primary_metric_is_found_and_held_against_the_threshold(
    metrics: dict[str, float | None], passed: bool, metric: str | None
) -> None:
    """A version is not kept out for a metric that nobody logged, nor let in for one of its training data."""
    check = judge_metric(metrics, 0.7, skip=False)
    assert (check.passed, check.evidence.get("metric")) == (passed, metric)


def test_skipped_gates_say_so() -> None:
    """The record must show what was overridden."""
    check = judge_metric({"accuracy": 0.1}, 0.7, skip=True)
    assert check.passed
    assert "below" in check.detail
    assert "Skipped" in check.detail


def test_signatures_without_columns_are_not_compared() -> None:
    """Tensors have no names."""
    tensor = {"inputs": [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]}
    columns = {"inputs": [{"name": "x", "type": "double", "required": True}]}
    assert "no columns" in compare_signatures(tensor, columns).detail
    assert compare_signatures(columns, columns).detail == "Requests that were right stay right."
    optional = {"inputs": [*columns["inputs"], {"name": "y", "type": "double", "required": False}]}
    assert "Warning" not in compare_signatures(columns, optional).detail


def test_the_plan_says_when_stages_are_not_to_be_had() -> None:
    """Whoever asked for 5 % must not find 100 %, without a word."""
    patience = Patience()
    for mode, stages, said in (("staged", None, True), ("instant", None, False), ("instant", [5.0], True)):
        plan = plan_of("flights", "1", "version 2", mode=mode, stages=stages, patience=patience)  # type: ignore[arg-type]
        assert ("rollback engine" in plan[2]["what"]) == said


def test_durations_are_told_of_what_has_ended() -> None:
    """Time to promote is a figure people compare; half of one is none."""

    def step(name: str, begin: float, end: float | None) -> Step:
        ended = NOW + timedelta(seconds=end) if end is not None else None
        return Step(name, "passed", NOW + timedelta(seconds=begin), ended, {})

    steps = [step("checking", 1, 3), step("preparing", 3, 8), step("shifting", 8, None)]
    assert durations_of(NOW, steps) == {"detect": None, "decide": 1.0, "validate": 7.0, "shift": None, "verify": None}
    assert set(durations_of(NOW, []).values()) == {None}


def probed(*outcomes: bool | None, version: str = "1") -> HealthProbeRow:
    row: HealthProbeRow | None = None
    for ok in outcomes:
        row = following(row, Finding("flights", version, ok, 0.01, None), NOW)
    assert row is not None
    return row


def test_three_failures_in_a_row_are_down_and_two_successes_up() -> None:
    """One lost packet is no outage, and one lucky answer no recovery."""
    assert not probed(False, False).down
    assert not probed(False, False, True, False, False).down
    assert probed(False, False, False).down
    assert probed(False, False, False, True).down
    assert not probed(False, False, False, True, True).down
    assert probed(False, False, False, True, False, True).down
    assert probed(False, None, False, None, False).down  # what could not be asked says nothing


def test_another_version_begins_anew() -> None:
    """After a promotion away from a broken version the model must not be down for what that one did."""
    row = following(probed(False, False, False), Finding("flights", "2", True, 0.01, None), NOW)
    assert (row.down, row.failures, row.successes) == (False, 0, 1)


COLUMNS = {
    "inputs": [
        {"name": "temp", "type": "double", "required": True},
        {"name": "carrier", "type": "string", "required": True},
        {"name": "wind", "type": "double", "required": False},
    ]
}
ASKED = {
    "inputs": [
        {"name": "temp", "shape": [1], "datatype": "FP64", "data": [41.0]},
        {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["UA"]},
    ]
}


@pytest.mark.parametrize(
    "example",
    [
        {"columns": ["temp", "carrier", "wind"], "data": [[None, "DL", 1.0], [41.0, "UA", float("nan")]]},
        {"dataframe_split": {"columns": ["temp", "carrier"], "data": [[41.0, "UA"]]}},
        {"dataframe_records": [{"temp": 41.0, "carrier": "UA", "more": 1}]},
        {"inputs": {"temp": [41.0], "carrier": ["UA"]}},
        [{"temp": 41.0, "carrier": "UA"}],
        {"temp": 41.0, "carrier": "UA"},
    ],
)
def test_a_probe_is_made_of_every_shape_of_example(example: Any) -> None:
    """MLflow writes them in as many ways as there are inputs; NaN stands bare in them and counts as missing."""
    assert infer_request(example, InputSchema.compile(COLUMNS).describe()) == ASKED


def test_a_probe_of_a_tensor_is_its_first_row() -> None:
    """Models on arrays are probed as well."""
    fields = InputSchema.compile(
        {"inputs": [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}}]}
    ).describe()
    for example in ({"inputs": [[1.0, 2.0], [3.0, 4.0]]}, [[1.0, 2.0]]):
        (tensor,) = infer_request(example, fields)["inputs"]
        assert (tensor["shape"], tensor["data"], tensor["datatype"]) == ([1, 2], [1.0, 2.0], "FP64")
    with pytest.raises(ValueError, match="another shape"):
        infer_request([[1.0]], fields)


@pytest.mark.parametrize("example", [{"temp": None, "carrier": "UA"}, [], {}, "text", [1, 2], None])
def test_an_example_that_cannot_be_asked_is_refused(example: Any) -> None:
    """A probe that is wrong by itself would take a healthy model down."""
    with pytest.raises(ValueError, match="no row"):
        infer_request(example, InputSchema.compile(COLUMNS).describe())
