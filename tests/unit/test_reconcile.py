"""What the agent has its workers do: every wanted version everywhere, the spare first, and never one that is needed gone."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.agent.reconcile import (
    RETRY_AFTER,
    UNWANTED_AFTER,
    Cause,
    Decision,
    Load,
    Loaded,
    Proof,
    Refusal,
    Situation,
    WorkerState,
    decide,
)
from serving.agent.route_table import SLOTS, Slots, build_table, known_versions
from serving.agent.standing import ENDED_WHILE_LOADING, Standing
from serving.contracts import Held, ModelKind, ModelServingConfig
from serving.desired import DesiredModel, DesiredState, Key, VersionReport, WantedVersion
from serving.routing import Route, RoutingTable

WORKERS = 3
SPARE = 2
BASE_MB = 100.0
DIGESTS = ("a" * 64, "b" * 64)
KEYS = [(model, version) for model in ("flights", "delays") for version in ("1", "2", "3")]


def wanted(key: Key, **given: object) -> WantedVersion:
    """A wanted version with everything that does not matter filled in."""
    return replace(WantedVersion(*key, DIGESTS[0], None), **given)  # type: ignore[arg-type]


def desired(versions: Iterable[WantedVersion], generation: int = 1) -> DesiredState:
    """What the database would say."""
    listed = list(versions)
    models = {
        name: DesiredModel(
            generation,
            ModelServingConfig(),
            tuple(Route(each.version, 1.0) for each in listed if each.model_id == name and each.routed)[:1],
        )
        for name in {each.model_id for each in listed}
    }
    return DesiredState(generation, models, {each.key: each for each in listed})


def held(key: Key, digest: str = DIGESTS[0], memory_mb: float = 10.0) -> Held:
    """What a worker says of a version."""
    return Held(*key, digest, ModelKind.CLASSIFIER, [0, 1], True, "sklearn", "", 0.1, [0.01], memory_mb)


class House:
    """Workers as the agent sees them, that do at once what they are told. `bad`: versions that cannot be loaded."""

    def __init__(
        self, bad: set[Key] | None = None, budget_mb: float = 1e6, sizes: dict[Key, float] | None = None
    ) -> None:
        self.standing = Standing(WORKERS, {})
        self.bad = bad or set()
        self.budget_mb = budget_mb
        self.sizes = sizes or {}
        self.now = 0.0
        self.holds: dict[int, dict[Key, Held]] = {worker: {} for worker in range(WORKERS)}
        self.loads: list[Load] = []
        self.unloads: list[tuple[int, Key]] = []
        for worker in range(WORKERS):
            self.say(worker)

    def say(self, worker: int) -> None:
        self.standing.worker_holds(worker, self.holds[worker], None)

    def want(self, *versions: WantedVersion) -> None:
        self.standing.follow(desired(versions), {}, self.now)

    def turn(self) -> Decision:
        """One decision, and all of it done."""
        rss = {worker: BASE_MB + sum(each.memory_mb for each in held.values()) for worker, held in self.holds.items()}
        everything = dict.fromkeys(("flights", "delays"), (64, 30))
        configured = dict.fromkeys(range(WORKERS), everything)
        decision = decide(self.standing.situation(set(), rss, configured, self.budget_mb, self.now))
        self.standing.refuse(decision.refusals)
        for unload in decision.unloads:
            self.unloads.append((unload.worker, unload.key))
            self.holds[unload.worker].pop(unload.key)
            self.say(unload.worker)
        for load in reversed(decision.loads):  # in any order: they are under way at once
            self.loads.append(load)
            if load.key in self.bad:
                self.standing.load_failed(load, "it is damaged", self.now)
                continue
            new = held(load.key, load.digest, self.sizes.get(load.key, 10.0))
            self.holds[load.worker][load.key] = new
            self.standing.worker_holds(load.worker, self.holds[load.worker], load.key)
            self.standing.load_succeeded(load, new)
        return decision

    def settle(self) -> None:
        """Turns until nothing is left to do."""
        for _ in range(200):
            decision = self.turn()
            if not (decision.loads or decision.unloads or decision.refusals):
                return
        raise AssertionError("it never comes to rest")

    def restart(self, worker: int) -> None:
        """A worker ends and comes back with what is on the list of those to start with."""
        self.standing.worker_gone(worker)
        proven = self.standing.proven()
        self.holds[worker] = {each.key: held(each.key, each.digest, self.sizes.get(each.key, 10.0)) for each in proven}
        self.say(worker)


versions = st.builds(
    lambda key, digest, attempt, routed, pinned, at: wanted(
        key, digest=digest, attempt=attempt, routed=routed, pinned=pinned, wanted_at=at
    ),
    st.sampled_from(KEYS),
    st.sampled_from(DIGESTS),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5).map(float),
)
wishes = st.lists(versions, max_size=6, unique_by=lambda each: each.key)
failing = st.sets(st.sampled_from(KEYS), max_size=3)
step = st.one_of(
    wishes.map(lambda each: ("want", each)),
    st.integers(0, WORKERS - 1).map(lambda each: ("restart", each)),
    st.floats(0, 100).map(lambda each: ("wait", each)),
    st.integers(1, 4).map(lambda each: ("turn", each)),
)


def play(house: House, steps: list[tuple[str, object]]) -> None:
    for what, value in steps:
        if what == "want":
            house.want(*value)  # type: ignore[misc]
        elif what == "restart":
            house.restart(value)  # type: ignore[arg-type]
        elif what == "wait":
            house.now += value  # type: ignore[operator]
        else:
            for _ in range(value):  # type: ignore[call-overload]
                house.turn()


@given(st.lists(step, max_size=12), wishes, failing)
@settings(max_examples=300, deadline=None)
def test_every_wanted_version_ends_up_in_every_worker(
    before: list[tuple[str, object]], finally_wanted: list[WantedVersion], bad: set[Key]
) -> None:
    """A promotion would wait for ever for a replica that holds all but one."""
    house = House(bad)
    play(house, before)
    house.want(*finally_wanted)
    house.settle()
    house.now += UNWANTED_AFTER + 1
    house.settle()
    reports = house.standing.reports()
    for each in finally_wanted:
        assert reports[each.key].state == ("failed" if each.key in bad else "ready")
        if each.key not in bad:
            for worker in range(WORKERS):
                assert house.holds[worker][each.key].digest == each.digest
    for worker in range(WORKERS):
        assert house.holds[worker].keys() <= {each.key for each in finally_wanted}


@given(
    st.lists(step, max_size=12), wishes, st.dictionaries(st.sampled_from(KEYS), st.floats(1, 900)), st.floats(120, 1500)
)
@settings(max_examples=300, deadline=None)
def test_routed_and_pinned_versions_are_never_unloaded(
    before: list[tuple[str, object]], kept: list[WantedVersion], sizes: dict[Key, float], budget_mb: float
) -> None:
    """A model that answers, or the one to go back to, would be gone when memory is short."""
    house = House(budget_mb=budget_mb, sizes=sizes)
    play(house, before)
    house.want(*kept)
    house.unloads.clear()
    house.settle()
    house.now += 2 * UNWANTED_AFTER
    house.settle()
    protected = {each.key for each in kept if each.protected}
    assert not protected & {key for _, key in house.unloads}
    for worker in range(WORKERS):
        assert protected <= house.holds[worker].keys()
        others = [key for key in house.holds[worker] if key not in protected]
        memory = BASE_MB + sum(each.memory_mb for each in house.holds[worker].values())
        assert memory <= budget_mb or not others


@given(wishes.filter(bool), failing)
def test_only_what_the_spare_has_proven_reaches_other_workers(wish: list[WantedVersion], bad: set[Key]) -> None:
    """One candidate that crashes its process would take every worker along, and with them the champion."""
    house = House(bad)
    house.want(*wish)
    house.settle()
    proven = set()
    for load in house.loads:
        assert load.worker == SPARE or (load.key, load.digest) in proven
        if load.worker == SPARE and load.key not in bad:
            proven.add((load.key, load.digest))
    assert not [load for load in house.loads if load.worker != SPARE and load.key in bad]


@given(failing.filter(bool), st.lists(st.floats(0, 1000), max_size=5), st.sets(st.integers(0, WORKERS - 1)))
def test_a_failed_version_is_tried_again_only_for_a_new_attempt(
    bad: set[Key], waits: list[float], restarts: set[int]
) -> None:
    """A broken version would be loaded over and over, and its process killed over and over."""
    house = House(bad)
    wish = [wanted(key) for key in bad]
    house.want(*wish)
    house.settle()
    assert len(house.loads) == len(bad)
    for each in waits:
        house.now += each
        house.settle()
    for worker in restarts:
        house.restart(worker)
        house.settle()
    assert len(house.loads) == len(bad)
    house.want(*(replace(each, attempt=2) for each in wish))
    house.settle()
    assert len(house.loads) == 2 * len(bad)
    house.bad.clear()
    house.want(*(replace(each, digest=DIGESTS[1], attempt=2) for each in wish))
    house.settle()
    assert {report.state for report in house.standing.reports().values()} == {"ready"}


def test_a_worker_that_cannot_load_what_is_proven_does_not_try_without_pause() -> None:
    """It would do nothing but load, and the spare with it, while a newer attempt is still open."""
    house = House()
    house.want(wanted(KEYS[0], routed=True))
    house.settle()
    house.bad.add(KEYS[0])
    house.want(wanted(KEYS[0], routed=True, attempt=2))
    house.holds[0] = {}
    house.say(0)
    house.settle()
    assert house.standing.reports()[KEYS[0]].state == "failed"
    assert KEYS[0] in house.holds[1]


def test_a_routed_version_that_failed_is_tried_again_after_a_while() -> None:
    """A disk that was away for a moment would leave a routed model without answers until a person comes."""
    house = House({KEYS[0]})
    house.want(wanted(KEYS[0], routed=True))
    house.settle()
    house.bad.clear()
    house.settle()
    assert house.standing.reports()[KEYS[0]].state == "failed"
    house.now += RETRY_AFTER
    house.settle()
    assert house.standing.reports()[KEYS[0]].state == "ready"


def test_a_new_attempt_loads_a_held_version_anew_in_the_spare_first() -> None:
    """A warm-up that somebody asked for would report the timings of last week."""
    house = House()
    house.want(wanted(KEYS[0], routed=True))
    house.settle()
    house.loads.clear()
    house.want(wanted(KEYS[0], routed=True, attempt=7))
    assert house.standing.reports()[KEYS[0]] == VersionReport("loading", 7, None, {"digest": DIGESTS[0], "held": True})
    house.settle()
    assert house.loads[0].worker == SPARE
    assert sorted(each.worker for each in house.loads) == list(range(WORKERS))
    assert house.standing.reports()[KEYS[0]].attempt == 7
    assert not house.unloads


def test_one_lost_spare_is_bad_luck_two_in_a_row_are_a_verdict() -> None:
    """A version that kills its process would be tried for ever, or one unlucky kill would refuse a good one."""
    house = House()
    house.want(wanted(KEYS[0]))
    (load,) = decide(house.standing.situation(set(), {}, {}, 1e6, 0)).loads
    assert house.standing.load_lost(load, 0)
    assert house.standing.reports()[KEYS[0]].state == "loading"
    assert not house.standing.load_lost(load, 0)
    assert house.standing.reports()[KEYS[0]].reason == ENDED_WHILE_LOADING


def test_what_ended_the_spare_reaches_no_other_worker_though_it_was_proven_once() -> None:
    """A version that hangs since the last change of a library would take one worker after the other down."""
    house = House()
    house.want(wanted(KEYS[0], routed=True))
    house.settle()
    house.want(wanted(KEYS[0], routed=True, attempt=2))
    (load,) = decide(house.standing.situation(set(), {}, {}, 1e6, 0)).loads
    house.standing.load_failed(load, "loading it took longer than 120 s", 0, ended=True)
    house.holds = {worker: {} for worker in range(WORKERS)}  # and now all of them are started again
    for worker in range(WORKERS):
        house.restart(worker)
    house.loads.clear()
    house.settle()
    assert house.loads == []
    house.now += RETRY_AFTER
    loads = decide(house.standing.situation(set(), {}, {}, 1e6, house.now)).loads
    assert [each.worker for each in loads] == [SPARE]
    house.standing.load_failed(loads[0], "loading it took longer than 120 s", house.now, ended=True)
    house.now += RETRY_AFTER + 1
    assert decide(house.standing.situation(set(), {}, {}, 1e6, house.now)).loads == []  # ever more seldom
    house.now += RETRY_AFTER
    house.settle()
    assert house.standing.reports()[KEYS[0]].state == "ready"


def test_what_a_worker_left_out_at_its_start_is_proven_anew_by_the_spare_first() -> None:
    """A version that ends processes would be ordered once more in each worker that has learned to do without it."""
    house = House()
    house.want(wanted(KEYS[0], routed=True))
    house.settle()
    for worker in range(WORKERS):
        house.standing.worker_gone(worker)
        house.holds[worker] = {}
        house.say(worker)
        house.standing.doubt({KEYS[0]: DIGESTS[0]})
    assert house.standing.proven() == []
    assert [each.worker for each in house.turn().loads] == [SPARE]
    house.standing.doubt({KEYS[0]: DIGESTS[0]})  # the others have not loaded it yet
    house.settle()
    assert house.standing.reports()[KEYS[0]].state == "ready"


def test_a_load_is_cut_off_only_where_giving_up_others_would_not_do() -> None:
    """The kernel would choose what to kill; or a candidate be refused for memory that nobody needs any more."""
    routed, old, new = KEYS[:3]
    house = House(budget_mb=1000, sizes={routed: 300, old: 500})
    house.want(wanted(routed, routed=True), wanted(old, wanted_at=1))
    house.settle()
    house.want(wanted(routed, routed=True), wanted(old, wanted_at=1), wanted(new, wanted_at=2))
    load = Load(SPARE, new, DIGESTS[0], 1, 1)
    why = house.standing.why_too_large
    assert why(load, 900, 1700, 1000) is None  # 1200 without the old one, and while loading there is some room
    assert why(load, 900, 1900, 1000) == (
        "loading it takes at least 1000 MB beside 400 MB that cannot be given up: 1400 MB, and a worker may take 1000 MB "
        "(SWITCHYARD_MEMORY_BUDGET_MB)"
    )
    assert why(replace(load, key=routed), 900, 1900, 1000) is None


def test_least_recently_wanted_goes_first_and_what_cannot_fit_is_refused() -> None:
    """Memory would run full, and the kernel would choose which process to kill."""
    old, new, huge = KEYS[:3]
    house = House(budget_mb=300, sizes={old: 120, new: 120, huge: 250})
    house.want(wanted(old, wanted_at=1))
    house.settle()
    house.want(wanted(old, wanted_at=1), wanted(new, wanted_at=2))
    house.settle()
    reports = house.standing.reports()
    assert (reports[old].state, reports[new].state) == ("evicted", "ready")
    house.want(wanted(old, wanted_at=1), wanted(new, wanted_at=2), wanted(huge, wanted_at=3))
    house.settle()
    reports = house.standing.reports()
    assert (reports[new].state, reports[huge].state) == ("ready", "failed")
    assert "350 MB" in (reports[huge].reason or "")
    assert not [load for load in house.loads if load.key == huge and load.worker != SPARE]
    # Somebody wants the evicted one again, though not anew.
    house.want(wanted(old, wanted_at=4), wanted(new, wanted_at=2))
    house.settle()
    assert house.standing.reports()[old].state == "ready"


def test_what_nobody_wants_any_more_stays_a_minute() -> None:
    """Going back right after a change would have to load again what was just there."""
    house = House()
    house.want(wanted(KEYS[0]))
    house.settle()
    house.want()
    house.settle()
    house.now += UNWANTED_AFTER - 1
    house.settle()
    assert not house.unloads
    house.now += 1
    house.settle()
    assert {worker for worker, _ in house.unloads} == set(range(WORKERS))


def test_a_snapshot_never_has_anything_unloaded() -> None:
    """With the database away, a version that only the database knows of would be dropped."""
    situation = Situation(
        wanted={},
        workers=[WorkerState(0, False, False, {KEYS[0]: Loaded(DIGESTS[0], 1, 500)}, rss_mb=1000)],
        proofs={},
        refusals={},
        configs={},
        unwanted_since={KEYS[0]: 0},
        now=1e6,
        memory_budget_mb=64,
        may_unload=False,
    )
    assert decide(situation).unloads == []
    assert decide(replace(situation, may_unload=True)).unloads


def test_a_changed_configuration_reaches_each_worker_that_holds_the_model_once() -> None:
    """A smaller batch size would not count before the next restart."""
    workers = [
        WorkerState(0, False, True, {KEYS[0]: Loaded(DIGESTS[0], 1)}, configured={"flights": (64, 30)}),
        WorkerState(1, False, False, {KEYS[0]: Loaded(DIGESTS[0], 1)}, configured={"flights": (8, 30)}),
        WorkerState(2, True, False, {}),
    ]
    situation = Situation({KEYS[0]: wanted(KEYS[0])}, workers, {}, {}, {"flights": (8, 30)}, {}, 0, 1e6)
    assert [(each.worker, each.batch_size) for each in decide(situation).configures] == [(0, 8)]


def test_after_a_restart_of_the_agent_failures_and_attempts_are_remembered() -> None:
    """A restarted agent would load everything anew, and try again what has failed."""
    good, bad = KEYS[:2]
    standing = Standing(WORKERS, {good: DIGESTS[0]})
    reported = {
        good: VersionReport("ready", 5, None, {"digest": DIGESTS[0]}),
        bad: VersionReport("failed", 3, "it is damaged", {"digest": DIGESTS[0], "cause": "failed", "wanted_at": 0.0}),
    }
    for worker in range(WORKERS):
        standing.worker_holds(worker, {good: held(good)}, None)
    standing.follow(desired([wanted(good, attempt=5), wanted(bad, attempt=3)]), reported, 0)
    assert decide(standing.situation(set(), {}, {}, 1e6, 0)).loads == []
    assert standing.reports()[bad].reason == "it is damaged"
    standing.follow(desired([wanted(good, attempt=6), wanted(bad, attempt=4)]), reported, 0)
    assert {each.worker for each in decide(standing.situation(set(), {}, {}, 1e6, 0)).loads} == {SPARE}


def test_a_load_cut_off_by_the_end_of_the_agent_is_made_again() -> None:
    """A warm-up asked for before the restart would count as done, though nobody has made it."""
    standing = Standing(WORKERS, {KEYS[0]: DIGESTS[0]})
    for worker in range(WORKERS):
        standing.worker_holds(worker, {KEYS[0]: held(KEYS[0])}, None)
    reported = {KEYS[0]: VersionReport("loading", 2, None, {"digest": DIGESTS[0]})}
    standing.follow(desired([wanted(KEYS[0], attempt=2)]), reported, 0)
    assert [each.worker for each in decide(standing.situation(set(), {}, {}, 1e6, 0)).loads] == [SPARE]


def test_a_restarting_worker_does_not_take_a_version_back_to_loading() -> None:
    """Each restart of one worker of many would stop changes, and look like an outage."""
    house = House()
    house.want(wanted(KEYS[0], routed=True))
    house.settle()
    house.standing.worker_gone(1)
    assert house.standing.reports()[KEYS[0]].state == "ready"
    house.standing.worker_gone(0)
    assert house.standing.reports()[KEYS[0]].state == "loading"  # the spare alone does not serve
    house.restart(0)
    assert house.standing.reports()[KEYS[0]].state == "ready"


@pytest.mark.parametrize("is_bad", [False, True])
def test_loading_anew_takes_no_version_out_of_service(is_bad: bool) -> None:
    """Whoever looks at a model that is warmed again would see it down, while it answers."""
    house = House()
    house.want(wanted(KEYS[0], routed=True))
    assert "held" not in house.standing.reports()[KEYS[0]].facts
    house.settle()
    house.want(wanted(KEYS[0], routed=True, attempt=2))
    report = house.standing.reports()[KEYS[0]]
    assert (report.state, report.attempt, report.facts["held"]) == ("loading", 2, True)
    if is_bad:
        house.bad.add(KEYS[0])
    house.settle()
    report = house.standing.reports()[KEYS[0]]
    assert report.state == ("failed" if is_bad else "ready")
    assert not is_bad or report.facts["held"]


def test_a_worker_without_a_proven_version_loads_it_while_the_spare_is_away() -> None:
    """A worker that lost a routed version would not answer for it until the spare is back."""
    situation = Situation(
        wanted={KEYS[0]: wanted(KEYS[0], routed=True, attempt=2)},
        workers=[WorkerState(0, False, False, {})],
        proofs={KEYS[0]: Proof(DIGESTS[0], 1)},
        refusals={KEYS[0]: Refusal(DIGESTS[0], 1, Cause.FAILED, "", 0)},
        configs={},
        unwanted_since={},
        now=0,
        memory_budget_mb=64,
    )
    assert decide(situation).loads == [Load(0, KEYS[0], DIGESTS[0], 1, 2)]


@given(st.lists(st.sets(st.integers(0, 400), max_size=40), min_size=1, max_size=30))
def test_a_slot_stays_with_its_version_and_is_nobody_elses(rounds: list[set[int]]) -> None:
    """Two versions would be counted as one, or a series would jump to another number."""
    slots = Slots()
    before: dict[Key, int] = {}
    for each in rounds:
        keys = {("m", str(version)) for version in each}
        dealt = slots.of(keys)
        assert len(set(dealt.values())) == len(keys)
        assert all(0 <= slot < SLOTS for slot in dealt.values())
        assert all(dealt[key] == before[key] for key in keys & before.keys())
        before = dealt
        slots = Slots(slots.dealt)  # as after a restart


def test_a_slot_is_taken_from_the_longest_unused_only_when_all_are_dealt() -> None:
    """Counters of a version that comes back would be lost while there is room."""
    slots = Slots()
    first = slots.of([("m", "0")])
    for version in range(1, SLOTS):
        slots.of([("m", str(version))])
    assert slots.of([("m", "0")]) == first
    assert slots.of([("m", "new")]) == {("m", "new"): 1}  # that of version 1: nothing was unused for longer


def test_the_table_is_one_that_http_processes_can_read() -> None:
    """They would refuse it, and go on with the routes of before."""
    state = desired([wanted(KEYS[0], routed=True), wanted(KEYS[1])])
    known = known_versions(state, {KEYS[1], ("gone", "1")}, {})
    table = RoutingTable.from_json(build_table(state, known, Slots().of(known), {"flights": ModelServingConfig()}))
    assert table.models["flights"].versions.keys() == {"1", "2"}
    assert DesiredState.from_table(table).versions[KEYS[0]].routed
    # What was known stays through a worker's restart, and until nobody holds it once it is not wanted any more.
    assert known_versions(state, set(), known).keys() == known.keys()
    without = desired([wanted(KEYS[0], routed=True)])
    assert known_versions(without, {KEYS[1]}, known).keys() == known.keys()
    assert known_versions(without, set(), known).keys() == {KEYS[0]}
