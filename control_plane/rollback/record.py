"""A change as it is told: its row, its steps, and how long each part of it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from control_plane.storage.tables import ChangeRow, ChangeStepRow


@dataclass(frozen=True)
class Step:
    """One step with what was found."""

    name: str
    state: str  # running, passed, failed, skipped
    started_at: datetime
    ended_at: datetime | None
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One change of what serves."""

    id: str
    kind: str
    model_id: str
    source: str | None
    target: str
    mode: str
    state: str
    reason: str
    requested_by: str
    trigger: str
    detail: str
    options: dict[str, Any]
    plan: list[dict[str, Any]]
    steps: list[Step]
    durations: dict[str, float | None]  # seconds
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    links: dict[str, str | None]


def change_of(row: ChangeRow, steps: Sequence[ChangeStepRow]) -> Change:
    """The change of these rows."""
    told = [Step(each.name, each.state, each.started_at, each.ended_at, each.evidence) for each in steps]
    return Change(
        id=row.id,
        kind=row.kind,
        model_id=row.model_id,
        source=row.source,
        target=row.target,
        mode=row.mode,
        state=row.state,
        reason=row.reason,
        requested_by=row.requested_by,
        trigger=row.trigger,
        detail=row.detail,
        options=row.options,
        plan=row.plan,
        steps=told,
        durations=durations_of(row.created_at, told),
        created_at=row.created_at,
        updated_at=row.updated_at,
        ended_at=row.ended_at,
        links={"console": None, "prefect": None},
    )


def durations_of(created_at: datetime, steps: Sequence[Step]) -> dict[str, float | None]:
    """Seconds of each part; None while it has not ended, or where there was none."""
    first = steps[0].started_at if steps else None
    return {
        "detect": None,  # between the cause and the wish: known where a trigger made the change
        "decide": (first - created_at).total_seconds() if first else None,
        "validate": _spent(steps, ("checking", "preparing")),
        "shift": _spent(steps, ("shifting",)),
        "verify": _spent(steps, ("verifying",)),
    }


def _spent(steps: Sequence[Step], names: Sequence[str]) -> float | None:
    found = [each for each in steps if each.name in names]
    if not found or any(each.ended_at is None for each in found):
        return None
    return sum((each.ended_at - each.started_at).total_seconds() for each in found if each.ended_at)
