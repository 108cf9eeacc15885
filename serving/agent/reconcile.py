"""What the workers should do next: wanted versions against held ones. Pure; the agent acts on it and asks again.

A version is loaded in the spare worker first. Only when that has proven it do the others load it, so that one that
crashes takes nothing along. One that failed is left alone until somebody asks anew by raising its attempt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from serving.desired import Key, WantedVersion

UNWANTED_AFTER = 60.0
"""Seconds that a version neither routed nor asked for stays loaded: somebody may want it back."""
RETRY_AFTER = 30.0
"""Seconds until a version that failed is tried again although nobody asks, where traffic is routed to it."""
LONGEST_RETRY = 3600.0
"""Seconds between two such attempts at the most, where each of them ends a process."""
_PEAK_MB = 128.0


@dataclass(frozen=True)
class Loaded:
    """A version in one worker, and the attempt it was loaded for."""

    digest: str
    attempt: int
    memory_mb: float = 0.0


@dataclass(frozen=True)
class Proof:
    """The spare has loaded and warmed this digest, for this attempt."""

    digest: str
    attempt: int


class Cause(StrEnum):
    """Why a version is not loaded although it is wanted."""

    FAILED = "failed"  # it cannot be loaded, or its worker ended while it was
    TOO_LARGE = "too_large"  # it does not fit into a worker even alone
    EVICTED = "evicted"  # others were wanted later, and memory did not do for all


@dataclass(frozen=True)
class Refusal:
    """A wanted version that is not loaded any more, until its attempt is raised or it gets another digest."""

    digest: str
    attempt: int
    cause: Cause
    reason: str
    at: float  # monotonic clock, seconds
    wanted_at: float = 0.0
    worker: int | None = None  # where it failed
    retry_after: float = RETRY_AFTER  # seconds

    def applies(self, wanted: WantedVersion) -> bool:
        """Whether it is still about what is wanted now."""
        if wanted.digest != self.digest or wanted.attempt > self.attempt:
            return False
        return self.cause is not Cause.EVICTED or wanted.wanted_at <= self.wanted_at

    def counts_for(self, wanted: WantedVersion) -> bool:
        """Whether the version is refused now. Want of memory is no reason where it is routed or pinned."""
        return self.applies(wanted) and (self.cause is Cause.FAILED or not wanted.protected)

    def stops_loading(self, wanted: WantedVersion, now: float) -> bool:
        """Whether the version must not be loaded now."""
        due = self.cause is Cause.FAILED and wanted.routed and now - self.at >= self.retry_after
        return self.counts_for(wanted) and not due

    def asks_to_unload(self, wanted: WantedVersion) -> bool:
        """Whether the version must not stay loaded either."""
        return self.cause is not Cause.FAILED and self.counts_for(wanted)


@dataclass(frozen=True)
class WorkerState:
    """A worker that is connected and has said what it holds."""

    worker: int
    spare: bool
    busy: bool  # with a load or unload; it does one at a time
    loaded: Mapping[Key, Loaded]
    rss_mb: float = 0.0
    configured: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # model -> batch_size, timeout


@dataclass(frozen=True)
class Load:
    """Have a worker load a version, in place of the same one if it holds it."""

    worker: int
    key: Key
    digest: str
    attempt: int  # that it counts for when it succeeds
    asked: int  # the latest: that it counts for when it fails


@dataclass(frozen=True)
class Unload:
    """Have a worker drop a version."""

    worker: int
    key: Key


@dataclass(frozen=True)
class Configure:
    """Tell a worker how a model of which it holds a version is served."""

    worker: int
    model_id: str
    batch_size: int
    timeout: float


@dataclass(frozen=True)
class Situation:
    """All that a decision depends on."""

    wanted: Mapping[Key, WantedVersion]
    workers: Sequence[WorkerState]
    proofs: Mapping[Key, Proof]
    refusals: Mapping[Key, Refusal]
    configs: Mapping[str, tuple[int, float]]  # model -> batch_size, timeout
    unwanted_since: Mapping[Key, float]  # monotonic clock, seconds
    now: float
    memory_budget_mb: float
    may_unload: bool = True  # not by a snapshot: it does not know everything that is wanted


@dataclass(frozen=True)
class Decision:
    """At most one load or unload per worker, and versions refused for want of memory."""

    loads: list[Load]
    unloads: list[Unload]
    configures: list[Configure]
    refusals: dict[Key, Refusal]


def decide(situation: Situation) -> Decision:
    """What to do now. Asked again whenever anything has changed, it leads to every wanted version in every worker."""
    refused = dict(situation.refusals)
    new = _too_much(situation, refused) if situation.may_unload else {}
    refused |= new
    loads: list[Load] = []
    unloads: list[Unload] = []
    for worker in situation.workers:
        if worker.busy:
            continue
        unload = _next_unload(situation, worker, refused) if situation.may_unload else None
        load = _next_load(situation, worker, refused) if unload is None else None
        unloads += [unload] if unload else []
        loads += [load] if load else []
    return Decision(loads, unloads, list(_configures(situation)), new)


def _next_load(situation: Situation, worker: WorkerState, refused: Mapping[Key, Refusal]) -> Load | None:
    for wanted in sorted(situation.wanted.values(), key=_urgency):
        refusal = refused.get(wanted.key)
        if refusal is not None and refusal.stops_loading(wanted, situation.now):
            continue
        attempt = _attempt_to_load(wanted, worker, situation.proofs.get(wanted.key))
        if attempt is not None:
            return Load(worker.worker, wanted.key, wanted.digest, attempt, wanted.attempt)
    return None


def _attempt_to_load(wanted: WantedVersion, worker: WorkerState, proof: Proof | None) -> int | None:
    """For which attempt this worker should load it now; None: it has it, or has to wait for the spare."""
    loaded = worker.loaded.get(wanted.key)
    held = loaded is not None and loaded.digest == wanted.digest
    if held and loaded is not None and loaded.attempt >= wanted.attempt:
        return None
    if worker.spare:
        return wanted.attempt
    if proof is None or proof.digest != wanted.digest:
        return None
    if proof.attempt >= wanted.attempt:
        return wanted.attempt
    return None if held else proof.attempt  # what is proven serves until the spare has proven the new attempt


def _urgency(wanted: WantedVersion) -> tuple[bool, bool, float, Key]:
    return not wanted.routed, not wanted.pinned, wanted.wanted_at, wanted.key


def _next_unload(situation: Situation, worker: WorkerState, refused: Mapping[Key, Refusal]) -> Unload | None:
    crowded = worker.rss_mb > situation.memory_budget_mb
    for key in sorted(worker.loaded):
        wanted = situation.wanted.get(key)
        if wanted is None:
            unwanted_for = situation.now - situation.unwanted_since.get(key, situation.now)
            gone = crowded or unwanted_for >= UNWANTED_AFTER
        else:
            gone = key in refused and refused[key].asks_to_unload(wanted)
        if gone:
            return Unload(worker.worker, key)
    return None


def _too_much(situation: Situation, refused: Mapping[Key, Refusal]) -> dict[Key, Refusal]:
    """The next version to give up where a worker takes more memory than it may; one at a time, then measure again."""
    for worker in situation.workers:
        crowded = worker.rss_mb > situation.memory_budget_mb
        if worker.busy or not crowded or _leaves(situation, worker, refused):
            continue
        candidates = [situation.wanted[key] for key in worker.loaded if not situation.wanted[key].protected]
        if candidates:
            return _give_up(situation, worker, sorted(candidates, key=lambda each: (each.wanted_at, each.key)))
    return {}


def _leaves(situation: Situation, worker: WorkerState, refused: Mapping[Key, Refusal]) -> bool:
    """Whether something is about to leave this worker anyway, which may be enough."""
    return any(
        key not in situation.wanted or (key in refused and refused[key].asks_to_unload(situation.wanted[key]))
        for key in worker.loaded
    )


def _give_up(situation: Situation, worker: WorkerState, by_age: list[WantedVersion]) -> dict[Key, Refusal]:
    """`by_age`: least recently wanted first."""
    budget = situation.memory_budget_mb
    newest = by_age[-1]
    without_others = worker.rss_mb - sum(worker.loaded[each.key].memory_mb for each in by_age[:-1])
    if without_others > budget:
        needs = min(worker.loaded[newest.key].memory_mb, without_others)
        reason = too_large("it needs", needs, without_others - needs, budget)
        return {newest.key: _refusal(newest, Cause.TOO_LARGE, reason, situation.now)}
    reason = (
        f"unloaded because a worker took {worker.rss_mb:.0f} MB of {budget:.0f} MB (SWITCHYARD_MEMORY_BUDGET_MB) "
        "and other versions were wanted later"
    )
    return {by_age[0].key: _refusal(by_age[0], Cause.EVICTED, reason, situation.now)}


def largest_while_loading(budget_mb: float) -> float:
    """MB that a worker may take while it loads, when a model and what it is read from may be there side by side."""
    return budget_mb + max(_PEAK_MB, budget_mb / 4)


def too_large(it_needs: str, needs_mb: float, held_mb: float, budget_mb: float) -> str:
    """Why a version is refused that takes a worker beyond its memory."""
    return (
        f"{it_needs} {needs_mb:.0f} MB beside {held_mb:.0f} MB that cannot be given up: {needs_mb + held_mb:.0f} MB, and "
        f"a worker may take {budget_mb:.0f} MB (SWITCHYARD_MEMORY_BUDGET_MB)"
    )


def _refusal(wanted: WantedVersion, cause: Cause, reason: str, now: float) -> Refusal:
    return Refusal(wanted.digest, wanted.attempt, cause, reason, now, wanted.wanted_at)


def _configures(situation: Situation) -> Iterable[Configure]:
    for worker in situation.workers:
        for model_id in sorted({model_id for model_id, _ in worker.loaded}):
            config = situation.configs.get(model_id)
            if config is not None and worker.configured.get(model_id) != config:
                yield Configure(worker.worker, model_id, *config)
