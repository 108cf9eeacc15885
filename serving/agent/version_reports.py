"""What a replica reports of one version, made of what its workers say, and read again after a restart. Pure."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serving.agent.reconcile import Cause, Refusal
from serving.contracts import Held
from serving.desired import VersionReport, WantedVersion


def ready_report(wanted: WantedVersion, held: Mapping[int, Held], spare: int) -> VersionReport:
    """What to say of a version that every worker holds; `held` by worker."""
    facts: dict[str, Any] = asdict(held[spare])
    facts["kind"] = str(facts["kind"])
    facts["workers"] = [
        {
            "worker": worker,
            "spare": worker == spare,
            "load_seconds": each.load_seconds,
            "warmup_seconds": each.warmup_seconds,
            "memory_mb": each.memory_mb,
        }
        for worker, each in held.items()
    ]
    return VersionReport("ready", wanted.attempt, None, facts)


def attempt_done(wanted: WantedVersion, report: VersionReport | None) -> int:
    """The attempt that what is held now was loaded for, as far as the last report tells."""
    if report is None:
        return wanted.attempt
    return report.attempt if report.state == "ready" else report.attempt - 1


def refused_report(wanted: WantedVersion, refusal: Refusal) -> VersionReport:
    """What to say of a version that is refused."""
    state = "evicted" if refusal.cause is Cause.EVICTED else "failed"
    facts = {"digest": wanted.digest, "cause": str(refusal.cause), "wanted_at": refusal.wanted_at}
    return VersionReport(state, wanted.attempt, refusal.reason, facts)


def refusal_of(wanted: WantedVersion, report: VersionReport, now: float) -> Refusal:
    """The refusal that an earlier life reported so; `now` on the monotonic clock."""
    cause = Cause(report.facts.get("cause", Cause.FAILED))
    wanted_at = report.facts.get("wanted_at", wanted.wanted_at)
    return Refusal(wanted.digest, report.attempt, cause, report.reason or "", now, wanted_at)
