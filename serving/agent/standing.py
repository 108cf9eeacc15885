"""What the agent knows of versions and workers across all their lives, and what follows for its reports. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from serving.agent.reconcile import Cause, Load, Loaded, Proof, Refusal, Situation, WorkerState
from serving.contracts import Held, ModelServingConfig
from serving.desired import NOTHING_DESIRED, DesiredState, Key, VersionReport, WantedVersion

_LOSSES = 2
"""A worker that ends this often while it loads a version was ended by it; once may have been anything."""
ENDED_WHILE_LOADING = "the worker process ended while it was loading"


class Standing:
    """Takes in what is desired and what workers say. Holds no connection and knows no clock."""

    def __init__(self, workers: int, proven: Mapping[Key, str]) -> None:
        """`workers`: how many there should be, the spare is the last. `proven`: digests, from an earlier life."""
        self.desired: DesiredState = NOTHING_DESIRED
        self.certain = False
        """Whether `desired` comes from the database; a snapshot does not know everything that is wanted."""
        self._workers = workers
        self._proofs = {key: Proof(digest, 1) for key, digest in proven.items()}
        self._refusals: dict[Key, Refusal] = {}
        self._held: dict[int, dict[Key, Held]] = {}
        self._loaded: dict[int, dict[Key, Loaded]] = {}
        self._ready: dict[Key, VersionReport] = {}
        self._losses: Counter[tuple[Key, int, int]] = Counter()
        self._unwanted_since: dict[Key, float] = {}

    @property
    def spare(self) -> int:
        """The worker that takes every version first."""
        return self._workers - 1

    @property
    def held(self) -> set[Key]:
        """Versions that at least one worker can answer for."""
        return {key for loaded in self._loaded.values() for key in loaded}

    def complete(self) -> bool:
        """Whether every worker is there and has said what it holds."""
        return len(self._held) == self._workers

    # What is desired.

    def follow(self, desired: DesiredState, reported: Mapping[Key, VersionReport] | None, now: float) -> None:
        """Something else is desired. `reported`: what stands in the database of us; None with a snapshot."""
        self.desired = desired
        if reported is not None and not self.certain:
            self.certain = True
            self._remember(reported, now)
        if self.certain:
            self._refusals = {key: each for key, each in self._refusals.items() if key in desired.versions}
            self._ready = {key: each for key, each in self._ready.items() if key in desired.versions}
        self._note_ready()

    def _remember(self, reported: Mapping[Key, VersionReport], now: float) -> None:
        """Go on from where an earlier life stopped: attempts made, failures not to be repeated."""
        for key, wanted in self.desired.versions.items():
            report = reported.get(key)
            if report is not None and report.facts.get("digest") != wanted.digest:
                report = None
            self._set_attempt(wanted, _attempt_done(wanted, report))
            if report is not None and report.state == "ready":
                self._ready[key] = report
            elif report is not None and report.state in ("failed", "evicted"):
                self._refusals[key] = _refusal_of(wanted, report, now)

    def _set_attempt(self, wanted: WantedVersion, attempt: int) -> None:
        proof = self._proofs.get(wanted.key)
        if proof is not None and proof.digest == wanted.digest:
            self._proofs[wanted.key] = replace(proof, attempt=attempt)
        for loaded in self._loaded.values():
            if wanted.key in loaded and loaded[wanted.key].digest == wanted.digest:
                loaded[wanted.key] = replace(loaded[wanted.key], attempt=attempt)

    # What workers say.

    def worker_holds(self, worker: int, held: Mapping[Key, Held], loading: Key | None) -> None:
        """A worker's own list. `loading`: what it is at now; its report, not this list, says that it is done."""
        before = self._loaded.get(worker, {})
        self._held[worker] = dict(held)
        self._loaded[worker] = {
            key: Loaded(each.digest, self._attempt_of(key, each, before.get(key), loading), each.memory_mb)
            for key, each in held.items()
        }
        if worker == self.spare:
            for key, loaded in self._loaded[worker].items():
                proof = self._proofs.get(key)
                if key != loading and (proof is None or proof.digest != loaded.digest):
                    self._proofs[key] = Proof(loaded.digest, loaded.attempt)
        self._note_ready()

    def _attempt_of(self, key: Key, held: Held, before: Loaded | None, loading: Key | None) -> int:
        if before is not None and before.digest == held.digest:
            return before.attempt
        if key == loading:
            return 0
        proof, wanted = self._proofs.get(key), self.desired.versions.get(key)
        if proof is not None and proof.digest == held.digest:
            return proof.attempt  # it has loaded what was proven, by itself when it started
        return wanted.attempt if wanted is not None else 1

    def worker_gone(self, worker: int) -> None:
        """A connection is lost. What the worker holds when it comes back it will say."""
        self._held.pop(worker, None)
        self._loaded.pop(worker, None)

    def load_succeeded(self, load: Load, held: Held) -> None:
        """A worker has loaded and warmed what it was told to."""
        if load.worker in self._loaded:  # else it ended right after
            self._held[load.worker][load.key] = held
            self._loaded[load.worker][load.key] = Loaded(held.digest, load.attempt, held.memory_mb)
        if load.worker == self.spare:
            self._proofs[load.key] = Proof(held.digest, load.attempt)
        refusal = self._refusals.get(load.key)
        if refusal is not None and refusal.worker in (None, load.worker):
            del self._refusals[load.key]
        self._forget_losses(load)
        self._note_ready()

    def load_failed(self, load: Load, reason: str, now: float) -> None:
        """A worker could not load it: nobody tries again until somebody asks anew."""
        where = "" if load.worker == self.spare else f"in worker {load.worker}: "
        self._refusals[load.key] = Refusal(
            load.digest, load.asked, Cause.FAILED, where + reason, now, worker=load.worker
        )
        self._forget_losses(load)

    def load_lost(self, load: Load, now: float) -> bool:
        """The worker's process ended meanwhile. False when that is taken for a failure of the version."""
        count = (load.key, load.attempt, load.worker)
        self._losses[count] += 1
        if self._losses[count] < _LOSSES:
            return True
        self.load_failed(load, ENDED_WHILE_LOADING, now)
        return False

    def _forget_losses(self, load: Load) -> None:
        self._losses.pop((load.key, load.attempt, load.worker), None)

    def refuse(self, refusals: Mapping[Key, Refusal]) -> None:
        """Versions that memory does not do for."""
        self._refusals |= refusals

    # What follows.

    def situation(
        self,
        busy: Collection[int],
        rss_mb: Mapping[int, float],
        configured: Mapping[int, Mapping[str, tuple[int, float]]],
        memory_budget_mb: float,
        now: float,
    ) -> Situation:
        """All that the next decision depends on."""
        held, wanted = self.held, self.desired.versions
        self._unwanted_since = {key: self._unwanted_since.get(key, now) for key in held if key not in wanted}
        self._proofs = {key: proof for key, proof in self._proofs.items() if key in wanted or key in held}
        workers = [
            WorkerState(
                worker, worker == self.spare, worker in busy, loaded, rss_mb.get(worker, 0.0), configured.get(worker, {})
            )
            for worker, loaded in sorted(self._loaded.items())
        ]  # fmt: skip
        return Situation(
            wanted=wanted,
            workers=workers,
            proofs=self._proofs,
            refusals=self._refusals,
            configs={name: (each.config.batch_size, each.config.timeout) for name, each in self.desired.models.items()},
            unwanted_since=self._unwanted_since,
            now=now,
            memory_budget_mb=memory_budget_mb,
            may_unload=self.certain,
        )

    def proven(self) -> list[WantedVersion]:
        """What a worker that starts has to load before it serves: wanted, and proven in this digest. Routed first."""
        chosen = [each for each in self.desired.versions.values() if self._is_proven(each)]
        return sorted(chosen, key=lambda each: (not each.routed, each.key))

    def to_load(self, key: Key, digest: str) -> dict[str, Any]:
        """What a worker is told of a version that it should load."""
        model = self.desired.models.get(key[0])
        config = model.config if model is not None else ModelServingConfig()
        return {
            "model_id": key[0],
            "version": key[1],
            "digest": digest,
            "batch_size": config.batch_size,
            "timeout": config.timeout,
            "warmup_requests": config.warmup_requests,
            "compiled": config.compiled,
        }

    def _is_proven(self, wanted: WantedVersion) -> bool:
        proof, refusal = self._proofs.get(wanted.key), self._refusals.get(wanted.key)
        if proof is None or proof.digest != wanted.digest:
            return False
        return wanted.protected or refusal is None or not refusal.counts_for(wanted)

    def reports(self) -> dict[Key, VersionReport]:
        """What to say of each wanted version."""
        return {key: self._report(wanted) for key, wanted in self.desired.versions.items()}

    def _report(self, wanted: WantedVersion) -> VersionReport:
        ready = self._ready.get(wanted.key)
        stays = ready is not None and ready.attempt >= wanted.attempt and ready.facts["digest"] == wanted.digest
        refusal = self._refusals.get(wanted.key)
        if refusal is not None and refusal.counts_for(wanted):
            report = _refused(wanted, refusal)
        # A worker that restarts comes back complete: until then the others do, and nothing has to be proven anew.
        elif ready is not None and stays and any(worker != self.spare for worker in self._holders(wanted)):
            return ready
        else:
            report = VersionReport("loading", wanted.attempt, None, {"digest": wanted.digest})
        # Loading it anew, whatever comes of that, takes nothing away from those who ask it meanwhile.
        return replace(report, facts={**report.facts, "held": True}) if self._answers(wanted) else report

    def _answers(self, wanted: WantedVersion) -> bool:
        """Whether a worker that takes part in the traffic holds these bytes, for whichever attempt."""
        held = [loaded.get(wanted.key) for worker, loaded in self._loaded.items() if worker != self.spare]
        return any(each is not None and each.digest == wanted.digest for each in held)

    def _note_ready(self) -> None:
        for wanted in self.desired.versions.values():
            holders = self._holders(wanted)
            if len(holders) == self._workers:
                self._ready[wanted.key] = self._ready_report(wanted, holders)

    def _holders(self, wanted: WantedVersion) -> list[int]:
        return [worker for worker in sorted(self._loaded) if self._has(worker, wanted)]

    def _has(self, worker: int, wanted: WantedVersion) -> bool:
        loaded = self._loaded[worker].get(wanted.key)
        return loaded is not None and loaded.digest == wanted.digest and loaded.attempt >= wanted.attempt

    def _ready_report(self, wanted: WantedVersion, holders: list[int]) -> VersionReport:
        held = {worker: self._held[worker][wanted.key] for worker in holders}
        facts: dict[str, Any] = asdict(held[self.spare])
        facts["kind"] = str(facts["kind"])
        facts["workers"] = [
            {
                "worker": worker,
                "spare": worker == self.spare,
                "load_seconds": each.load_seconds,
                "warmup_seconds": each.warmup_seconds,
                "memory_mb": each.memory_mb,
            }
            for worker, each in held.items()
        ]
        return VersionReport("ready", wanted.attempt, None, facts)


def _attempt_done(wanted: WantedVersion, report: VersionReport | None) -> int:
    """The attempt that what is held now was loaded for, as far as the last report tells."""
    if report is None:
        return wanted.attempt
    return report.attempt if report.state == "ready" else report.attempt - 1


def _refused(wanted: WantedVersion, refusal: Refusal) -> VersionReport:
    state = "evicted" if refusal.cause is Cause.EVICTED else "failed"
    facts = {"digest": wanted.digest, "cause": str(refusal.cause), "wanted_at": refusal.wanted_at}
    return VersionReport(state, wanted.attempt, refusal.reason, facts)


def _refusal_of(wanted: WantedVersion, report: VersionReport, now: float) -> Refusal:
    cause = Cause(report.facts.get("cause", Cause.FAILED))
    wanted_at = report.facts.get("wanted_at", wanted.wanted_at)
    return Refusal(wanted.digest, report.attempt, cause, report.reason or "", now, wanted_at)
