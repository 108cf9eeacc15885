"""How a model stands: who serves it, where, and how well."""

from datetime import datetime
from typing import Any, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.changes import ChangeBody
from control_plane.api.dependencies import ModelId, ServicesOf, in_own_thread, require_known
from control_plane.api.errors import documented
from control_plane.api.models import RouteBody
from control_plane.errors import RegistryRefused, RegistryUnreachable
from control_plane.monitoring import ModelStanding
from control_plane.replicas import MEANING, HeldVersion, ModelStatus, Replica
from control_plane.rollback.record import change_of
from control_plane.storage.tables import HealthProbeRow
from serving.contracts import ModelServingConfig
from serving.errors import DatabaseUnavailable, ModelNotFound, ValidationFailed

router = APIRouter(prefix="/ml/models", tags=["models"])


class HeldBody(BaseModel):
    """What a replica made of a version: its state, and what it found when it loaded it."""

    model_config = ConfigDict(extra="allow")

    state: str = Field(description="Of the last attempt: loading, ready, failed or evicted.", examples=["ready"])
    attempt: int
    held: bool = Field(description="Whether it answers, from this attempt or an earlier one.")
    reason: str | None = Field(description="Why it failed or was evicted; else null.")
    changed_at: datetime
    compilation: dict[str, Any] | None = Field(
        default=None,
        description="Whether it answers by its compiled form (`used`), and what comparing it with the model itself "
        "found: `reason`, `rows`, `max_difference`, and microseconds of both for one row and for 64.",
    )

    @classmethod
    def of(cls, held: HeldVersion) -> Self:
        """Ours wins over a fact of the same name."""
        said = {
            "state": held.state,
            "attempt": held.attempt,
            "held": held.answers,
            "reason": held.reason,
            "changed_at": held.changed_at,
        }
        return cls.model_validate({**held.facts, **said})


class ReplicaBody(BaseModel):
    """One data plane, as it last said itself."""

    replica: str = Field(examples=["127.0.0.1:8000"])
    url: str
    live: bool = Field(description="Whether its heartbeat is younger than five seconds.")
    age: float = Field(description="Seconds since its heartbeat.")
    heartbeat: datetime
    started_at: datetime
    route_revision: int = Field(description="Revision of this model's routes that it has applied; 0: none.")
    workers: list[dict[str, Any]]
    versions: dict[str, HeldBody] = Field(description="version -> what it made of it")

    @classmethod
    def of(cls, replica: Replica, model_id: str) -> Self:
        """As far as it concerns this model."""
        held = {version: each for (name, version), each in sorted(replica.versions.items()) if name == model_id}
        return cls(
            replica=replica.replica,
            url=replica.url,
            live=replica.is_live,
            age=round(replica.age, 3),
            heartbeat=replica.heartbeat,
            started_at=replica.started_at,
            route_revision=replica.revisions.get(model_id, 0),
            workers=replica.workers,
            versions={version: HeldBody.of(each) for version, each in held.items()},
        )


class LastKnownGoodBody(BaseModel):
    """What to go back to: the latest version that a change succeeded with and that has no traffic now."""

    model_config = ConfigDict(from_attributes=True)

    version: str
    change_id: str = Field(description="The change that took the traffic away from it.")
    is_warm: bool = Field(description="Loaded on every live replica, so that it could serve at once.")


class HealthBody(BaseModel):
    """What the last probe through the real path found."""

    model_config = ConfigDict(from_attributes=True)

    version: str
    checked_at: datetime
    ok: bool | None = Field(description="null: it could not be probed, `problem` says why.")
    seconds: float | None
    failures: int = Field(description="In a row; three make it down.")
    successes: int = Field(description="In a row; two make it up again.")
    down: bool
    problem: str | None

    @classmethod
    def of(cls, probe: HealthProbeRow | None) -> Self | None:
        """None before the first probe."""
        return cls.model_validate(probe) if probe else None


class StatusBody(BaseModel):
    """Everything that is known of how one model is served."""

    model_id: str = Field(examples=["flights"])
    status: ModelStatus = Field(description=". ".join(f"{status.value}: {said}" for status, said in MEANING.items()))
    version: str | None = Field(description="The version with the largest share; null while it is unserved.")
    route_revision: int = Field(description="Revision of the routes that replicas should apply.")
    routes: list[RouteBody]
    replicas: list[ReplicaBody] = Field(description="Live ones, and those that died in the last quarter of an hour.")
    change: ChangeBody | None = Field(description="The change under way.")
    last_known_good: LastKnownGoodBody | None
    config: ModelServingConfig
    health: HealthBody | None = Field(description="null before the first probe.")

    @classmethod
    def of(cls, standing: ModelStanding) -> Self:
        """As the API shows it."""
        good = standing.last_known_good
        return cls(
            model_id=standing.model_id,
            status=standing.status,
            version=standing.routes[0].version if standing.routes else None,
            route_revision=standing.revision,
            routes=[RouteBody.model_validate(each) for each in standing.routes],
            replicas=[ReplicaBody.of(each, standing.model_id) for each in standing.replicas],
            change=ChangeBody.model_validate(change_of(*standing.change)) if standing.change else None,
            last_known_good=LastKnownGoodBody.model_validate(good) if good else None,
            config=standing.config,
            health=HealthBody.of(standing.probe),
        )


@router.get(
    "/{model_id}/status",
    summary="How a model stands",
    responses=documented(ModelNotFound, RegistryRefused, ValidationFailed, DatabaseUnavailable, RegistryUnreachable),
)
async def read_status(services: ServicesOf, model_id: ModelId) -> StatusBody:
    """Routes, replicas with what they hold, the change under way, configuration and probes."""
    await require_known(services, model_id)
    return StatusBody.of(await in_own_thread(services.standings.read, model_id))
