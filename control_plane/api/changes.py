"""Changes of what serves: looking at them, and calling them off."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.dependencies import PRINTABLE, ServicesOf, in_own_thread
from control_plane.api.errors import WITH_BODY, documented
from control_plane.errors import ChangeMovedOn, ChangeNotFound
from control_plane.rollback import ChangeState
from control_plane.rollback.states import MEANING
from serving.errors import DatabaseUnavailable, ValidationFailed

router = APIRouter(prefix="/ml/changes", tags=["changes"])


class StepBody(BaseModel):
    """One step of a change: its intent before it was done, its evidence after it."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(examples=["preparing"])
    state: str = Field(description="running, passed, failed or skipped", examples=["passed"])
    started_at: datetime
    ended_at: datetime | None
    evidence: dict[str, Any]


class ChangeBody(BaseModel):
    """One change of what serves."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(
        description="`dry-run` for what was only planned.", examples=["0192d7a4-6f1e-7c3b-9a55-0242ac120002"]
    )
    kind: str = Field(description="promote or rollback", examples=["promote"])
    model_id: str = Field(examples=["flights"])
    source: str | None = Field(description="The version it leads away from; null for a first one.", examples=["3"])
    target: str = Field(examples=["4"])
    mode: str = Field(description="staged or instant", examples=["staged"])
    state: str = Field(
        description=". ".join(f"{state.value}: {said}" for state, said in MEANING.items())
        + ". planned: a dry run found nothing against it",
        examples=["succeeded"],
    )
    detail: str = Field(description="Why it ended as it did; empty until then.")
    reason: str
    requested_by: str
    trigger: str = Field(examples=["api"])
    plan: list[dict[str, Any]]
    steps: list[StepBody]
    durations: dict[str, float | None] = Field(
        description="Seconds of detect, decide, validate, shift and verify; null while one has not ended, or was not."
    )
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    links: dict[str, str | None] = Field(description="Pages to look at: console, prefect; null where there is none.")


class ChangeList(BaseModel):
    """Changes, newest first."""

    items: list[ChangeBody]
    next: str | None = Field(None, description="Give it as `before` to get the following page; null on the last.")


class CancelBody(BaseModel):
    """Why, and who."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "wrong model", "by": "ada"}]})

    reason: str = Field(min_length=1, max_length=2000, pattern=PRINTABLE)
    by: str = Field(min_length=1, max_length=200, pattern=PRINTABLE)


ChangeId = Annotated[str, Path(max_length=100, pattern=PRINTABLE, examples=["0192d7a4-6f1e-7c3b-9a55-0242ac120002"])]


@router.get("", summary="Every change", responses=documented(ValidationFailed, DatabaseUnavailable))
async def list_changes(
    services: ServicesOf,
    model_id: Annotated[str | None, Query(max_length=500, pattern=PRINTABLE, description="Only of this model.")] = None,
    state: Annotated[ChangeState | None, Query(description="Only those in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 100,
    before: Annotated[
        str | None, Query(max_length=100, pattern=PRINTABLE, description="Only those older than this one.")
    ] = None,
) -> ChangeList:
    """Newest first, with their steps."""
    found = await in_own_thread(services.changes.recent, model_id=model_id, state=state, limit=limit + 1, before=before)
    items = [ChangeBody.model_validate(each) for each in found[:limit]]
    return ChangeList(items=items, next=items[-1].id if len(found) > limit else None)


@router.get(
    "/{change_id}", summary="One change", responses=documented(ChangeNotFound, ValidationFailed, DatabaseUnavailable)
)
async def read_change(services: ServicesOf, change_id: ChangeId) -> ChangeBody:
    """Its state, plan, steps with evidence, and how long each part took."""
    return ChangeBody.model_validate(await in_own_thread(services.changes.find, change_id))


@router.post(
    "/{change_id}/cancel",
    summary="Call a change off",
    responses=documented(*WITH_BODY, ChangeNotFound, ChangeMovedOn, DatabaseUnavailable),
)
async def cancel_change(services: ServicesOf, change_id: ChangeId, body: CancelBody) -> ChangeBody:
    """Before traffic is touched, so that everything stays as it was; later it is refused with 409."""
    cancelled = await in_own_thread(services.changes.cancel, change_id, reason=body.reason, by=body.by)
    return ChangeBody.model_validate(cancelled)
