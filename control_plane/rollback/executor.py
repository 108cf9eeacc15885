"""Advancing changes: each call one step, which persists whole or not at all, so that whoever comes next can go on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlmodel import Session

from control_plane.errors import ChangeMovedOn, LeaseHeld
from control_plane.preparation import live_replicas
from control_plane.replicas import Patience, Progress, Verdict, judge_applied, judge_preparation
from control_plane.rollback.checks import TargetChecks, already_serves
from control_plane.rollback.states import ChangeState, has_ended, require_transition, way_out
from control_plane.storage.changes import amend_step, close_step, find_change, move_change, open_step, running_step
from control_plane.storage.leases import Lease, release_lease, take_lease
from control_plane.storage.replicas import keep_warm, release_version, want_version
from control_plane.storage.routes import lease_name, read_routes, write_routes
from control_plane.storage.tables import ChangeRow, ChangeStepRow
from serving.errors import DatabaseUnavailable, SwitchyardError
from serving.logs import logger, working_on
from serving.routing import Route
from serving.store import Database

log = logger(__name__)

Act = Callable[[Session, Lease], Mapping[str, Any]]


@dataclass(frozen=True)
class Pace:
    """How fast changes go, in seconds."""

    poll: float = 0.1  # between two looks at what the replicas say
    lease: float = 10.0  # after this long another control plane takes over from one that was killed
    patience: Patience = field(default_factory=Patience)


class Executor:
    """Advances changes, as one holder of leases."""

    def __init__(self, database: Database, checks: TargetChecks, pace: Pace, holder: str) -> None:
        """`holder` must be this process's alone, also after a restart: leases are told apart by it."""
        self._database = database
        self._checks = checks
        self._holder = holder
        self.pace = pace
        self._handlers: dict[ChangeState, Callable[[ChangeRow], None]] = {
            ChangeState.REQUESTED: self._begin,
            ChangeState.CHECKING: self._check,
            ChangeState.PREPARING: self._prepare,
            ChangeState.SHIFTING: self._shift,
            ChangeState.VERIFYING: self._verify,
        }

    def advance(self, change_id: str) -> bool:
        """Do a change's next step, or look whether what it waits for has come. False when it has ended.

        Raises:
            LeaseHeld: another control plane advances it.
            DatabaseUnavailable: try again.
        """
        with self._database.reading() as session:
            change = find_change(session, change_id)
        if change is None or change.ended_at is not None:
            return False
        with working_on(change_id=change_id, model_id=change.model_id):
            try:
                self._handlers[ChangeState(change.state)](change)
            except ChangeMovedOn:
                pass  # cancelled meanwhile, or advanced by another: the next look tells
            except (LeaseHeld, DatabaseUnavailable):
                raise
            except Exception as error:  # noqa: BLE001 (it ends the change, with its reason, instead of the loop of all)
                self._give_up(change, error)
        return True

    def hold(self, model_id: str) -> None:
        """Renew the lease while a step takes its time.

        Raises:
            LeaseHeld: another control plane has it.
        """
        with self._database.writing() as session:
            take_lease(session, lease_name(model_id), self._holder, self.pace.lease)

    def _begin(self, change: ChangeRow) -> None:
        self._move(change, ChangeState.CHECKING, {})

    def _check(self, change: ChangeRow) -> None:
        requested = str(change.options.get("requested", change.target))
        found = self._checks.examine(
            change.model_id, requested, skip_gates=bool(change.options.get("skip_gates", False))
        )
        if not found.passed:
            self._move(change, ChangeState.REJECTED, found.evidence(), detail=found.reason)
        elif found.serves_already:
            said = already_serves(found.target)
            self._move(change, ChangeState.SUCCEEDED, found.evidence(), target=found.target, detail=said)
        else:
            self._move(
                change,
                ChangeState.PREPARING,
                found.evidence(),
                act=lambda session, _: {"attempt": want_version(session, change.model_id, found.target)},
                target=found.target,
            )

    def _prepare(self, change: ChangeRow) -> None:
        step, progress = self._look_at_preparation(change)
        if progress.verdict is Verdict.WAITING:
            self._show(change, step, progress)
        elif progress.verdict is Verdict.REFUSED:
            self._move(
                change,
                ChangeState.REJECTED,
                progress.evidence(),
                act=lambda session, _: {"released": release_version(session, change.model_id, change.target)},
                detail=progress.reason,
            )
        else:
            attempt = {"attempt": step.evidence["attempt"]}
            self._move(change, ChangeState.SHIFTING, progress.evidence(), act=lambda _, __: attempt)

    def _shift(self, change: ChangeRow) -> None:
        """Looks once more first: a control plane that takes over may come long after everything was ready."""
        step, progress = self._look_at_preparation(change)
        if progress.verdict is Verdict.WAITING:
            self._show(change, step, progress)
        elif progress.verdict is Verdict.REFUSED:
            said = f"The routes were left as they were: {progress.reason}"
            self._move(change, ChangeState.FAILED, progress.evidence(), detail=said)
        else:
            with self._database.reading() as session:
                before = read_routes(session, change.model_id).get(change.model_id, [])
            source = before[0].version if before else None
            evidence = {"routes_before": {each.version: each.weight for each in before}}
            act = _routing(change, source)
            self._move(change, ChangeState.VERIFYING, evidence, act=act, source=source)

    def _verify(self, change: ChangeRow) -> None:
        with self._database.reading() as session:
            step = running_step(session, change.id)
            live = live_replicas(session)
        progress = judge_applied(
            live, change.model_id, step.evidence["revision"], _seconds_since(step), self.pace.patience
        )
        if progress.verdict is Verdict.WAITING:
            self._show(change, step, progress)
        elif progress.verdict is Verdict.REFUSED:
            said = f"The routes lead to version {change.target}. {progress.reason}"
            self._move(change, ChangeState.FAILED, progress.evidence(), detail=said)
        else:
            self._move(
                change,
                ChangeState.SUCCEEDED,
                progress.evidence(),
                act=lambda session, _: {"released": keep_warm(session, change.model_id, change.source)},
                detail=f"Version {change.target} has all the traffic.",
            )

    def _look_at_preparation(self, change: ChangeRow) -> tuple[ChangeStepRow, Progress]:
        with self._database.reading() as session:
            step = running_step(session, change.id)
            live = live_replicas(session)
        attempt = step.evidence["attempt"]
        waited = _seconds_since(step)
        return step, judge_preparation(live, change.model_id, change.target, attempt, waited, self.pace.patience)

    def _show(self, change: ChangeRow, step: ChangeStepRow, progress: Progress) -> None:
        """Whoever watches sees each replica advance; written only when one has."""
        if step.evidence.get("replicas") != progress.replicas:
            with self._database.writing() as session:
                take_lease(session, lease_name(change.model_id), self._holder, self.pace.lease)
                amend_step(session, change.id, progress.evidence())

    def _give_up(self, change: ChangeRow, error: Exception) -> None:
        """What stopped it would stop it again: end it where it can be seen, instead of trying for ever."""
        if not isinstance(error, SwitchyardError):
            log.error("a step of a change failed unexpectedly", state=change.state, exc_info=error)
        said = error.detail if isinstance(error, SwitchyardError) else f"unexpected {type(error).__name__}; see the log"
        after = way_out(ChangeState(change.state))
        self._move(change, after, {"error": type(error).__name__}, detail=f"While {change.state}: {said}")

    def _move(
        self,
        change: ChangeRow,
        after: ChangeState,
        evidence: Mapping[str, Any],
        *,
        act: Act = lambda _, __: {},
        **values: Any,
    ) -> None:
        """One transaction: the lease, the state, what is done, the evidence of it, and the intent of what comes next.

        Raises:
            ChangeMovedOn: it is in another state by now; nothing was done.
            LeaseHeld: another control plane is at it; nothing was done.
        """
        require_transition(ChangeState(change.state), after)
        went_wrong = after in (ChangeState.REJECTED, ChangeState.FAILED)
        if has_ended(after):
            values["ended_at"] = datetime.now(UTC)
        with self._database.writing() as session:
            lease = take_lease(session, lease_name(change.model_id), self._holder, self.pace.lease)
            if not move_change(session, change, after, **values):
                raise ChangeMovedOn(change.id, "elsewhere")
            noted = act(session, lease)
            close_step(session, change.id, "failed" if went_wrong else "passed", {**evidence, **noted})
            if has_ended(after):
                release_lease(session, lease)
            else:
                open_step(session, change.id, after, noted)
        write = log.warning if went_wrong else log.info
        write("change moves", before=change.state, after=after.value, detail=values.get("detail", ""))


def _routing(change: ChangeRow, source: str | None) -> Act:
    """All traffic to the target, and the aliases to what they mean from then on."""
    aliases: dict[str, str | None] = {"champion": change.target}
    if source is not None and source != change.target:
        aliases["previous"] = source

    def act(session: Session, lease: Lease) -> Mapping[str, Any]:
        reason = f"{change.kind} {change.id}: {change.reason}"
        routes = [Route(change.target, 1.0)]
        return {"revision": write_routes(session, lease, change.model_id, routes, reason=reason, aliases=aliases)}

    return act


def _seconds_since(step: ChangeStepRow) -> float:
    return (datetime.now(UTC) - step.started_at).total_seconds()
