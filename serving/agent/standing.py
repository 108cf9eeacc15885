"""What the agent knows of versions and workers across all their lives, and what follows for its reports. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from serving.agent.reconcile import (
    LONGEST_RETRY,
    RETRY_AFTER,
    Cause,
    Load,
    Loaded,
    Proof,
    Refusal,
    Situation,
    WorkerState,
    largest_while_loading,
    too_large,
)
from serving.agent.version_reports import attempt_done, ready_report, refusal_of, refused_report
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
        self._endings: Counter[tuple[Key, str]] = Counter()
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
            self._set_attempt(wanted, attempt_done(wanted, report))
            if report is not None and report.state == "ready":
                self._ready[key] = report
            elif report is not None and report.state in ("failed", "evicted"):
                self._refusals[key] = refusal_of(wanted, report, now)

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
            self._endings.pop((load.key, load.digest), None)
        self._forget_losses(load)
        self._note_ready()

    def load_failed(
        self, load: Load, reason: str, now: float, *, cause: Cause = Cause.FAILED, ended: bool = False
    ) -> None:
        """A worker could not load it: nobody tries again until somebody asks anew.

        `ended`: it made the worker's process end. Then no other worker loads it before the spare has proven it anew.
        """
        where = "" if load.worker == self.spare else f"in worker {load.worker}: "
        wanted = self.desired.versions.get(load.key)
        self._refusals[load.key] = Refusal(
            load.digest, load.asked, cause, where + reason, now, wanted.wanted_at if wanted else 0.0, load.worker,
            self._retry_after(load) if ended else RETRY_AFTER,
        )  # fmt: skip
        if ended and load.worker == self.spare:
            self._proofs.pop(load.key, None)
        self._forget_losses(load)

    def _retry_after(self, load: Load) -> float:
        self._endings[load.key, load.digest] += 1
        return min(LONGEST_RETRY, RETRY_AFTER * 2.0 ** (self._endings[load.key, load.digest] - 1))

    def doubt(self, left_out: Mapping[Key, str]) -> None:
        """A worker leaves these digests out at its start, as processes ended of them: the spare proves them anew first."""
        for key, digest in left_out.items():
            proof, held = self._proofs.get(key), self._loaded.get(self.spare, {}).get(key)
            if proof is not None and proof.digest == digest and (held is None or held.digest != digest):
                del self._proofs[key]

    def why_too_large(self, load: Load, before_mb: float, rss_mb: float, budget_mb: float) -> str | None:
        """Why a load must be cut off that has brought its worker from `before_mb` to `rss_mb`; None where it need not.

        Never that of a routed or pinned version, which is loaded whatever it takes.
        """
        wanted = self.desired.versions.get(load.key)
        if wanted is None or wanted.protected or not self.certain:
            return None
        others = [each for key, each in self._loaded.get(load.worker, {}).items() if not self._is_protected(key)]
        spared = sum(each.memory_mb for each in others)
        if rss_mb - spared <= largest_while_loading(budget_mb):
            return None
        held = max(0.0, before_mb - spared)
        return too_large("loading it takes at least", rss_mb - spared - held, held, budget_mb)

    def _is_protected(self, key: Key) -> bool:
        wanted = self.desired.versions.get(key)
        return wanted is not None and wanted.protected

    def load_lost(self, load: Load, now: float) -> bool:
        """The worker's process ended meanwhile. False when that is taken for a failure of the version."""
        count = (load.key, load.attempt, load.worker)
        self._losses[count] += 1
        if self._losses[count] < _LOSSES:
            return True
        self.load_failed(load, ENDED_WHILE_LOADING, now, ended=True)
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
            report = refused_report(wanted, refusal)
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
                held = {worker: self._held[worker][wanted.key] for worker in holders}
                self._ready[wanted.key] = ready_report(wanted, held, self.spare)

    def _holders(self, wanted: WantedVersion) -> list[int]:
        return [worker for worker in sorted(self._loaded) if self._has(worker, wanted)]

    def _has(self, worker: int, wanted: WantedVersion) -> bool:
        loaded = self._loaded[worker].get(wanted.key)
        return loaded is not None and loaded.digest == wanted.digest and loaded.attempt >= wanted.attempt
