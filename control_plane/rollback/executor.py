"""Advancing changes: each call one step, which persists whole or not at all, so that whoever comes next can go on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlmodel import Session

from control_plane.errors import ChangeMovedOn, LeaseHeld
from control_plane.preparation import Waiting, live_replicas
from control_plane.replicas import Patience, Progress, Replica, Verdict, Waited, judge_applied, judge_preparation
from control_plane.rollback.checks import TargetChecks, already_serves
from control_plane.rollback.states import ChangeState, has_ended, require_transition, way_out
from control_plane.storage.changes import (
    amend_step,
    close_step,
    find_change,
    last_known_good,
    move_change,
    note_source,
    open_step,
    running_step,
)
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


def _nothing(_session: Session, _lease: Lease) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Pace:
    """How fast changes go, in seconds."""

    poll: float = 0.1  # between two looks at what the replicas say
    lease: float = 10.0  # after this long another control plane takes over from one that was killed
    quick: float = 0.15  # for how long asking for a change waits for the registry: it is answered within 0.2
    patience: Patience = field(default_factory=Patience)


class Executor:
    """Advances changes, as one holder of leases."""

    def __init__(
        self,
        database: Database,
        checks: TargetChecks,
        pace: Pace,
        holder: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`holder` must be this process's alone, also after a restart: leases are told apart by it."""
        self._database = database
        self._checks = checks
        self._holder = holder
        self._clock = clock
        self.pace = pace
        self._waiting: dict[str, tuple[int, Waiting]] = {}  # change -> number of its step, since we first looked
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
            self._waiting.pop(change_id, None)
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
            said = already_serves(found)
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
                act=_releasing(change),
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
            self._move(change, ChangeState.FAILED, progress.evidence(), act=_releasing(change), detail=said)
        else:
            self._move(change, ChangeState.VERIFYING, {}, act=_routing(change))

    def _verify(self, change: ChangeRow) -> None:
        with self._database.reading() as session:
            step = running_step(session, change.id)
            live = live_replicas(session)
        waited = self._waited(step, live)
        progress = judge_applied(live, change.model_id, step.evidence["revision"], waited, self.pace.patience)
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
                act=lambda session, _: {"released": keep_warm(session, change.model_id, _good(session, change))},
                detail=f"Version {change.target} has all the traffic.",
            )

    def _look_at_preparation(self, change: ChangeRow) -> tuple[ChangeStepRow, Progress]:
        with self._database.reading() as session:
            step = running_step(session, change.id)
            live = live_replicas(session)
        attempt = step.evidence["attempt"]
        waited = self._waited(step, live)
        return step, judge_preparation(live, change.model_id, change.target, attempt, waited, self.pace.patience)

    def _waited(self, step: ChangeStepRow, live: Sequence[Replica]) -> Waited:
        number, waiting = self._waiting.get(step.change_id, (None, None))
        if waiting is None or number != step.number:
            self._forget_lapsed()
            waiting = Waiting(self._clock)
            self._waiting[step.change_id] = (step.number, waiting)
        return waiting.look(live)

    def _forget_lapsed(self) -> None:
        """What another control plane took over it has ended too, and no look of ours will tell us so."""
        for change_id, (_, waiting) in self._waiting.copy().items():  # other changes have threads of their own
            if waiting.has_lapsed:
                self._waiting.pop(change_id, None)

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
        self._move(
            change,
            after,
            {"error": type(error).__name__},
            act=_releasing(change) if change.state in (ChangeState.PREPARING, ChangeState.SHIFTING) else _nothing,
            detail=f"While {change.state}: {said}",
        )

    def _move(
        self,
        change: ChangeRow,
        after: ChangeState,
        evidence: Mapping[str, Any],
        *,
        act: Act = _nothing,
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
        # Why stands in the record: what a model says of the rows it was tried with is nothing for a log.
        write = log.warning if went_wrong else log.info
        write("change moves", before=change.state, after=after.value)


def _routing(change: ChangeRow) -> Act:
    """All traffic to the target, and the aliases to what they mean from then on. What served is put on record."""

    def act(session: Session, lease: Lease) -> Mapping[str, Any]:
        before = read_routes(session, change.model_id).get(change.model_id, [])
        source = before[0].version if before else None
        note_source(session, change.id, source)
        aliases: dict[str, str | None] = {"champion": change.target}
        if source is not None and source != change.target:
            aliases["previous"] = source
        reason = f"{change.kind} {change.id}: {change.reason}"
        routes = [Route(change.target, 1.0)]
        revision = write_routes(session, lease, change.model_id, routes, reason=reason, aliases=aliases)
        return {"routes_before": {each.version: each.weight for each in before}, "revision": revision}

    return act


def _releasing(change: ChangeRow) -> Act:
    """Nobody wants it any more."""
    return lambda session, _: {"released": release_version(session, change.model_id, change.target)}


def _good(session: Session, change: ChangeRow) -> str | None:
    """What to keep warm, to go back to."""
    found = last_known_good(session, change.model_id)
    return found[0] if found else None
