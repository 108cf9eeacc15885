"""Promotion: asking for another version to serve."""

from typing import Annotated, Literal

import anyio
from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.changes import ChangeBody
from control_plane.api.dependencies import PRINTABLE, ModelId, Person, ServicesOf, in_own_thread
from control_plane.api.errors import WITH_BODY, documented
from control_plane.errors import (
    AliasNotFound,
    ChangeMovedOn,
    ChangeUnderWay,
    IdempotencyKeyReused,
    InvalidVersionReference,
    VersionNotFound,
)
from control_plane.rollback import Wish
from serving.errors import DatabaseUnavailable, FieldProblem, ModelNotFound, ValidationFailed

router = APIRouter(prefix="/ml/models", tags=["changes"])

Share = Annotated[float, Field(gt=0, le=100)]
_REFUSALS = (ModelNotFound, VersionNotFound, AliasNotFound, InvalidVersionReference, ChangeUnderWay, ChangeMovedOn)


class PromoteBody(BaseModel):
    """What should serve, and why."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"target": "4", "reason": "better on spring flights"}]}
    )

    target: str = Field(
        min_length=1,
        max_length=200,
        pattern=PRINTABLE,
        description="A version, or an alias of one.",
        examples=["4"],
        # As described; what else is given gets a better answer than that it does not match.
        json_schema_extra={"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$"},
    )
    reason: str = Field(min_length=1, max_length=2000, pattern=PRINTABLE, description="Goes on record.")
    mode: Literal["staged", "instant"] = Field(
        "staged", description="How traffic moves. For now in one step both ways; the plan says so."
    )
    stages: list[Share] | None = Field(None, max_length=100, description="Percentages of a staged change.")
    approval: bool = Field(
        default=False,
        description="Whether a person has to approve it; not to be had yet, so true is refused.",
        json_schema_extra={"const": False},
    )
    skip_gates: bool = Field(default=False, description="Do not judge the version's quality.")
    dry_run: bool = Field(default=False, description="Check and plan; write nothing.")


@router.post(
    "/{model_id}/promote",
    summary="Let another version serve",
    status_code=202,
    responses={
        200: {
            "model": ChangeBody,
            "description": "The plan of a dry run: a change that is not on record, planned or rejected.",
        },
        **documented(*WITH_BODY, *_REFUSALS, IdempotencyKeyReused, DatabaseUnavailable),
    },
)
async def promote(
    services: ServicesOf,
    model_id: ModelId,
    body: PromoteBody,
    person: Person,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(max_length=200, pattern=PRINTABLE, description="The same key gives the same change, however often."),
    ] = None,
) -> ChangeBody:
    """It is loaded and warmed up on every live replica first, then gets the traffic; nothing is dropped.

    The answer comes at once: the change as it begins; ask for it again (`GET /ml/changes/{id}`) to see it end. What
    already serves is a change that succeeds without doing anything.

    A target that does not exist is refused (404) where that is known at once. A registry that takes longer is not
    waited for: then the change is on record (202), and ends `rejected` with the same words. A dry run waits.
    """
    if body.approval:
        problem = FieldProblem("approval", "approvals come with the rollback engine", "false, or left out")
        raise ValidationFailed([problem])
    wish = Wish(
        model_id=model_id,
        target=body.target,
        reason=body.reason,
        requested_by=person,
        mode=body.mode,
        stages=body.stages,
        skip_gates=body.skip_gates,
        idempotency_key=idempotency_key or None,
    )
    if body.dry_run:
        response.status_code = 200
        return ChangeBody.model_validate(await anyio.to_thread.run_sync(services.changes.plan, wish))
    return ChangeBody.model_validate(await in_own_thread(services.changes.promote, wish))
