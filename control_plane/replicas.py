"""What replicas say of themselves, and what follows: how a model stands, whether a version is ready everywhere. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from serving.routing import Route

LIVE_SECONDS = 5.0
"""A replica whose last heartbeat is younger than this is live."""


class ModelStatus(StrEnum):
    """How a model stands, from what replicas report and from the last probes."""

    READY = "ready"
    DEGRADED = "degraded"
    DOWN = "down"
    LOADING = "loading"
    UNSERVED = "unserved"


MEANING: dict[ModelStatus, str] = {
    ModelStatus.READY: "every live replica holds every routed version, has applied the routes, and probes are answered",
    ModelStatus.DEGRADED: "some live replica can answer, but not all are complete, or probes fail on one of several",
    ModelStatus.DOWN: "it is routed, but no live replica can answer, or probes of the only one fail",
    ModelStatus.LOADING: "it is routed, no live replica can answer yet, and at least one is loading",
    ModelStatus.UNSERVED: "it has no routes: promote a version",
}


@dataclass(frozen=True)
class HeldVersion:
    """What one replica made of one version that it should hold."""

    state: str  # of the last attempt: loading, ready, failed or evicted
    attempt: int
    reason: str | None  # why it failed
    facts: dict[str, Any]  # kind, engine, timings
    changed_at: datetime

    @property
    def answers(self) -> bool:
        """Whether it can be asked: a version that is loaded anew is still there from before."""
        return self.state == "ready" or self.facts.get("held") is True


@dataclass(frozen=True)
class Replica:
    """One data plane, as it last said itself."""

    replica: str  # host:port
    url: str
    started_at: datetime
    heartbeat: datetime
    age: float  # seconds since its heartbeat, by the database's clock
    generation: int
    revisions: dict[str, int]  # model -> revision of the routes it has applied
    workers: list[dict[str, Any]]
    versions: dict[tuple[str, str], HeldVersion] = field(default_factory=dict)  # by (model, version)

    @property
    def is_live(self) -> bool:
        """Whether its heartbeat is young enough to count on it."""
        return self.age < LIVE_SECONDS

    def holds(self, model_id: str, version: str) -> bool:
        """Whether it can answer for this version."""
        held = self.versions.get((model_id, version))
        return held is not None and held.answers

    def has_applied(self, model_id: str, revision: int) -> bool:
        """Whether its HTTP processes route by this revision, or a later one."""
        return self.revisions.get(model_id, 0) >= revision


def status_of(
    model_id: str, routes: Sequence[Route], revision: int, replicas: Sequence[Replica], *, probes_fail: bool
) -> ModelStatus:
    """How a model stands; `MEANING` says each in a sentence. `replicas` may hold dead ones: they do not count."""
    if not routes:
        return ModelStatus.UNSERVED
    live = [each for each in replicas if each.is_live]
    routed = [each.version for each in routes if each.weight > 0]
    if not any(each.holds(model_id, version) for each in live for version in routed):
        return ModelStatus.LOADING if _is_loading(model_id, routed, live) else ModelStatus.DOWN
    if probes_fail:
        return ModelStatus.DOWN if len(live) == 1 else ModelStatus.DEGRADED
    complete = all(
        each.has_applied(model_id, revision) and all(each.holds(model_id, version) for version in routed)
        for each in live
    )
    return ModelStatus.READY if complete else ModelStatus.DEGRADED


def _is_loading(model_id: str, routed: Sequence[str], live: Sequence[Replica]) -> bool:
    """A replica that has said nothing of a version has only just started, and will load it next."""
    states = (each.versions.get((model_id, version)) for each in live for version in routed)
    return any(held is None or held.state == "loading" for held in states)


@dataclass(frozen=True)
class Patience:
    """How long to wait for replicas, in seconds."""

    replica: float = 30.0  # for any live one at all
    ready: float = 300.0  # for all of them to have loaded and warmed up
    applied: float = 15.0  # for all of them to have applied new routes


@dataclass(frozen=True)
class Waited:
    """For how long replicas have been waited for, in seconds."""

    total: float
    alone: float  # without any live one, up to now
    together: float  # with a live one at every look, up to now


class Verdict(StrEnum):
    """What waiting for replicas has come to."""

    DONE = "done"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True)
class Progress:
    """How far the replicas are, and what follows."""

    verdict: Verdict
    reason: str  # why it was refused; else what is waited for
    replicas: dict[str, dict[str, Any]]  # live replica -> what it says

    def evidence(self) -> dict[str, Any]:
        """For the record."""
        return {"verdict": self.verdict.value, "reason": self.reason, "replicas": self.replicas}


def judge_preparation(
    live: Sequence[Replica], model_id: str, version: str, attempt: int, waited: Waited, patience: Patience
) -> Progress:
    """Whether every live replica holds the version of this attempt (or a later one)."""
    said = {each.replica: _said(each, model_id, version, attempt) for each in live}
    failed = {name: each["reason"] for name, each in said.items() if each["state"] in ("failed", "evicted")}
    waiting = sorted(name for name, each in said.items() if each["state"] != "ready")
    if failed:
        return Progress(Verdict.REFUSED, "; ".join(f"{name}: {why}" for name, why in sorted(failed.items())), said)
    if not live:
        return Progress(_until(waited.alone, patience.replica), _nobody_could("load it"), said)
    if waiting:
        reason = f"Not ready after {waited.total:.0f} s (at most {patience.ready:g} s): {', '.join(waiting)}."
        return Progress(_until(waited.total, patience.ready), reason, said)
    return Progress(Verdict.DONE, f"Ready on {len(said)} of {len(said)} live replicas.", said)


def judge_applied(
    live: Sequence[Replica], model_id: str, revision: int, waited: Waited, patience: Patience
) -> Progress:
    """Whether every live replica routes by this revision. One that has just come gets its full time for it."""
    said = {each.replica: {"revision": each.revisions.get(model_id, 0)} for each in live}
    behind = sorted(each.replica for each in live if not each.has_applied(model_id, revision))
    if live and not behind:
        return Progress(Verdict.DONE, f"Applied by {len(said)} of {len(said)} live replicas.", said)
    # Replicas that come and go would be waited for without an end.
    if waited.total >= patience.replica + patience.applied:
        verdict = Verdict.REFUSED
    else:
        verdict = _until(waited.together, patience.applied) if live else _until(waited.alone, patience.replica)
    if not live:
        return Progress(verdict, _nobody_could(f"apply the routes of revision {revision}"), said)
    reason = (
        f"The routes of revision {revision} were not applied after {waited.together:.0f} s by: {', '.join(behind)}."
    )
    return Progress(verdict, reason, said)


def _said(replica: Replica, model_id: str, version: str, attempt: int) -> dict[str, Any]:
    held = replica.versions.get((model_id, version))
    if held is None or held.attempt < attempt:
        return {"state": "waiting"}
    if held.state in ("failed", "evicted"):
        return {"state": held.state, "reason": held.reason or "no reason given"}
    return {"state": held.state, **_timings(held.facts)}


def _timings(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in ("engine", "load_seconds", "warmup_seconds") if key in facts}


def _nobody_could(deed: str) -> str:
    return f"No data plane is running that could {deed}: none has sent a heartbeat in the last {LIVE_SECONDS:g} s."


def _until(waited: float, limit: float) -> Verdict:
    return Verdict.REFUSED if waited >= limit else Verdict.WAITING
