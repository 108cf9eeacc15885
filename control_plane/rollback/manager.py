"""Wishes become changes on record: asking, looking, calling off. Who advances them is executor.py."""

import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlmodel import Session

from control_plane.errors import ChangeMovedOn, ChangeNotFound, ChangeUnderWay, IdempotencyKeyReused
from control_plane.registry import VersionManager
from control_plane.replicas import Patience
from control_plane.rollback.checks import NO_SUCH_TARGET, TargetChecks, already_serves
from control_plane.rollback.plan import Mode, plan_of
from control_plane.rollback.record import Change, Step, change_of
from control_plane.rollback.states import ChangeState, can_be_cancelled
from control_plane.storage import changes
from control_plane.storage.replicas import release_version
from control_plane.storage.routes import read_routes
from control_plane.storage.tables import ChangeRow
from serving.errors import SwitchyardError
from serving.logs import logger
from serving.store import Database

log = logger(__name__)

DRY_RUN = "dry-run"
"""In place of the id of a change that was only planned."""


@dataclass(frozen=True)
class Wish:
    """What somebody wants to serve."""

    model_id: str
    target: str  # a version number or an alias
    reason: str
    requested_by: str
    mode: Mode = "staged"
    stages: Sequence[float] | None = None
    skip_gates: bool = False
    trigger: str = "api"
    idempotency_key: str | None = None

    def options(self) -> dict[str, Any]:
        """What of it is kept with the change, and compared when its key comes again."""
        return {
            "requested": self.target.strip(),
            "mode": self.mode,
            "stages": list(self.stages) if self.stages else None,
            "skip_gates": self.skip_gates,
        }


class ChangeManager:
    """Every change of what serves, of every model."""

    def __init__(
        self, database: Database, versions: VersionManager, checks: TargetChecks, patience: Patience, *, quick: float
    ) -> None:
        """`quick`: how long asking for a change waits for the registry, in seconds."""
        self._database = database
        self._versions = versions
        self._checks = checks
        self._patience = patience
        self._quick_seconds = quick
        self._quick = ThreadPoolExecutor(max_workers=4, thread_name_prefix="quick-look")
        self._wake: Callable[[], None] = lambda: None

    def on_new(self, wake: Callable[[], None]) -> None:
        """`wake` is called, in any thread, as soon as a change waits to be advanced."""
        self._wake = wake

    def promote(self, wish: Wish) -> Change:
        """Put a promotion on record; it is advanced by the duty at once. Asks the registry for a moment at most.

        The same idempotency key gives the same change.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound, InvalidVersionReference: there is no such target, where that
                can be known at once; else the change says so when it is checked.
            ChangeUnderWay: the model has another one.
            IdempotencyKeyReused: the key was used for another wish.
            DatabaseUnavailable: nothing can be put on record.
        """
        known = self._known_before(wish)
        if known is not None:
            return known
        target = self._target_at_once(wish.model_id, wish.target.strip())
        with self._database.writing() as session:
            row, is_new = self._put_on_record(session, self._row(session, wish, target), wish)
            steps = changes.steps_of(session, [row.id])[row.id]
        if is_new:
            log.info(
                "change asked for", change_id=row.id, model_id=row.model_id, target=row.target, by=row.requested_by
            )
            self._wake()
        return change_of(row, steps)

    def plan(self, wish: Wish) -> Change:
        """What `promote` would do, as a change that is not on record: `planned`, or `rejected` where something speaks against it.

        Nothing is written. Asks the registry, and waits for it, for a version that is not kept here yet.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound, InvalidVersionReference: there is no such target.
            DatabaseUnavailable: it cannot be known what serves.
        """
        started = datetime.now(UTC)
        found = self._checks.foresee(wish.model_id, wish.target.strip(), skip_gates=wish.skip_gates)
        with self._database.reading() as session:
            row = self._row(session, wish, found.target)
        row.id, row.state = DRY_RUN, "planned" if found.passed else ChangeState.REJECTED.value
        row.detail = already_serves(found) if found.serves_already else found.reason
        row.plan = [] if found.serves_already else row.plan
        state = "passed" if found.passed else "failed"
        step = Step("checking", state, started, datetime.now(UTC), found.evidence())
        return replace(change_of(row, []), steps=[step])

    def find(self, change_id: str) -> Change:
        """One change.

        Raises:
            ChangeNotFound: there is none of this id.
        """
        with self._database.reading() as session:
            return self._told(session, change_id)

    def recent(
        self,
        *,
        model_id: str | None = None,
        state: ChangeState | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Change]:
        """Newest first; `before` is the id of the last one of the page before."""
        with self._database.reading() as session:
            rows = changes.list_changes(session, model_id=model_id, state=state, limit=limit, before=before)
            steps = changes.steps_of(session, [row.id for row in rows])
            return [change_of(row, steps[row.id]) for row in rows]

    def under_way(self) -> list[tuple[str, str]]:
        """(change, model) of all that have not ended."""
        with self._database.reading() as session:
            return [(row.id, row.model_id) for row in changes.changes_under_way(session)]

    def cancel(self, change_id: str, *, reason: str, by: str) -> Change:
        """Call a change off before traffic is touched.

        Raises:
            ChangeNotFound: there is none of this id.
            ChangeMovedOn: it shifts traffic already, or has ended.
        """
        with self._database.writing() as session:
            row = changes.find_change(session, change_id)
            if row is None:
                raise ChangeNotFound(change_id)
            if not can_be_cancelled(ChangeState(row.state)):
                raise ChangeMovedOn(change_id, row.state)
            before, said = row.state, f"Cancelled by {by}: {reason}"
            ended = {"ended_at": datetime.now(UTC), "detail": said}
            if not changes.move_change(session, row, ChangeState.CANCELLED, **ended):
                raise ChangeMovedOn(change_id, "advanced a moment ago")
            changes.close_step(session, change_id, "skipped", {"cancelled_by": by, "reason": reason})
            if before == ChangeState.PREPARING:  # earlier it was not asked for, and may be kept warm for another reason
                release_version(session, row.model_id, row.target)
        log.info("change cancelled", change_id=change_id, model_id=row.model_id, by=by)
        return self.find(change_id)

    def close(self) -> None:
        """Ask nothing more, and wait for what is being asked: nothing uses the database afterwards."""
        self._quick.shutdown(cancel_futures=True)

    def _known_before(self, wish: Wish) -> Change | None:
        """What need not ask anybody else: the key was used, or the model is busy."""
        with self._database.reading() as session:
            if wish.idempotency_key is not None:
                row = changes.find_by_key(session, wish.model_id, wish.idempotency_key)
                if row is not None:
                    return self._same_wish(session, row, wish)
            _refuse_busy(session, wish.model_id)
        return None

    def _target_at_once(self, model_id: str, reference: str) -> str:
        """The number behind the reference if that is known here, or the registry says it in no time."""
        asked: Future[str] = self._quick.submit(self._versions.resolve, model_id, reference)
        try:
            return asked.result(self._quick_seconds)
        except NO_SUCH_TARGET:
            raise
        except (TimeoutError, SwitchyardError):
            asked.cancel()
            return reference  # whether it exists is found when it is checked

    def _row(self, session: Session, wish: Wish, target: str) -> ChangeRow:
        source, now = _source(session, wish.model_id), datetime.now(UTC)
        return ChangeRow(
            id=_new_id(),
            kind="promote",
            model_id=wish.model_id,
            source=source,
            target=target,
            mode=wish.mode,
            state=ChangeState.REQUESTED.value,
            reason=wish.reason,
            requested_by=wish.requested_by,
            trigger=wish.trigger,
            idempotency_key=wish.idempotency_key,
            options=wish.options(),
            plan=self._plan(wish, source, target),
            created_at=now,
            updated_at=now,
        )

    def _put_on_record(self, session: Session, row: ChangeRow, wish: Wish) -> tuple[ChangeRow, bool]:
        """The row that stands there afterwards, and whether it is this one: two may ask at the same moment."""
        if changes.insert_change(session, row):
            return row, True
        if wish.idempotency_key is not None:
            other = changes.find_by_key(session, wish.model_id, wish.idempotency_key)
            if other is not None:
                self._same_wish(session, other, wish)
                return other, False
        _refuse_busy(session, wish.model_id)
        raise ChangeMovedOn(row.id, "overtaken by a change that has just ended; ask again")

    def _same_wish(self, session: Session, row: ChangeRow, wish: Wish) -> Change:
        if row.options != wish.options() or row.reason != wish.reason:
            raise IdempotencyKeyReused(wish.idempotency_key or "", row.id)
        return self._told(session, row.id)

    def _told(self, session: Session, change_id: str) -> Change:
        row = changes.find_change(session, change_id)
        if row is None:
            raise ChangeNotFound(change_id)
        return change_of(row, changes.steps_of(session, [change_id])[change_id])

    def _plan(self, wish: Wish, source: str | None, target: str) -> list[dict[str, Any]]:
        named = f"version {target}" if target.isdecimal() else f"'{target}'"
        return plan_of(wish.model_id, source, named, mode=wish.mode, stages=wish.stages, patience=self._patience)


def _refuse_busy(session: Session, model_id: str) -> None:
    busy = changes.change_under_way(session, model_id)
    if busy is not None:
        raise ChangeUnderWay(model_id, busy.id, busy.target, busy.state)


def _source(session: Session, model_id: str) -> str | None:
    routes = read_routes(session, model_id).get(model_id, [])
    return routes[0].version if routes else None


def _new_id() -> str:
    """A UUID of version 7 (RFC 9562): ids in the order of time, so that the newest changes are found by them."""
    value = (int(time.time() * 1000) & (1 << 48) - 1) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))
