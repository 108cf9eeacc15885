"""Whether the control plane lives, and whether it can do its work."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from control_plane.api.dependencies import get_services
from control_plane.api.errors import RETRY_AFTER_SECONDS, documented
from control_plane.services import Services
from serving.errors import SwitchyardError

router = APIRouter(tags=["operations"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Check(BaseModel):
    """One thing the control plane depends on."""

    name: str = Field(examples=["database"])
    ok: bool
    needed: bool = Field(description="Whether the control plane is not ready without it.")
    detail: str = Field(description="What was found; if it is not well, also the way out.", examples=["schema 0001"])


class Readiness(BaseModel):
    """Ready: everything needed answers. Degraded: something that is not needed does not."""

    status: Literal["ready", "degraded", "not_ready"]
    checks: list[Check]


@router.get("/health/live", summary="Does the process answer?", responses=documented())
@router.head("/health/live", include_in_schema=False)
async def live() -> Live:
    """Always 200 while the process can answer at all."""
    # Not in a thread: a registry that hangs keeps every thread of the pool waiting.
    return Live()


@router.get("/health/ready", summary="Can it do its work?", responses={**documented(), 503: {"model": Readiness}})
@router.head("/health/ready", include_in_schema=False)
def ready(response: Response, services: Annotated[Services, Depends(get_services)]) -> Readiness:
    """200 when the database can be used; 503 when not. A registry that is down degrades, since what serves goes on."""
    checks = [_database(services), _registry(services)]
    status: Literal["ready", "degraded", "not_ready"] = "ready"
    if not all(check.ok for check in checks):
        status = "degraded" if all(check.ok for check in checks if check.needed) else "not_ready"
    if status == "not_ready":
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return Readiness(status=status, checks=checks)


def _database(services: Services) -> Check:
    try:
        services.database.check()
    except SwitchyardError as error:
        return Check(name="database", ok=False, needed=True, detail=error.detail)
    return Check(name="database", ok=True, needed=True, detail=f"schema {services.database.schema}")


def _registry(services: Services) -> Check:
    try:
        version = services.registry.ping()
    except SwitchyardError as error:
        return Check(name="registry", ok=False, needed=False, detail=error.detail)
    return Check(name="registry", ok=True, needed=False, detail=f"MLflow {version} at {services.registry.address}")
