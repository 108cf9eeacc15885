"""Tables that both planes read. The control plane writes them; migrations are its business."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint
from sqlmodel import Field, SQLModel

from serving.store.types import JsonColumn, UtcDateTime


class ModelVersionRow(SQLModel, table=True):
    """A registered version of which we hold our own copy, with all that must outlive the registry's record of it."""

    __tablename__ = "model_version"

    model_id: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    digest: str = Field(index=True, description="sha256 of the folder in the artifact store")
    size_bytes: int = Field(sa_type=BigInteger)
    identity: str = Field(
        description="what the registry calls the files, e.g. models:/m-0123; the number may come again, this does not"
    )
    tags: dict[str, str] = Field(sa_type=JsonColumn)
    metrics: dict[str, float | None] = Field(sa_type=JsonColumn)
    signature: dict[str, Any] | None = Field(default=None, sa_type=JsonColumn)
    run_id: str | None = None
    created_at: datetime = Field(sa_type=UtcDateTime)
    created_by: str | None = None
    kept_at: datetime = Field(sa_type=UtcDateTime)


class RoutingRow(SQLModel, table=True):
    """One row a model that is, or was, served: the revision of its routes."""

    __tablename__ = "routing"

    model_id: str = Field(primary_key=True)
    revision: int
    updated_at: datetime = Field(sa_type=UtcDateTime)


class RouteRow(SQLModel, table=True):
    """The share of a model's traffic that one version should get. The foreign key keeps unprepared versions out."""

    __tablename__ = "route"
    __table_args__ = (
        ForeignKeyConstraint(
            ["model_id", "version"], ["model_version.model_id", "model_version.version"], name="route_version"
        ),
        ForeignKeyConstraint(["model_id"], ["routing.model_id"], name="route_routing"),
        CheckConstraint("weight >= 0 AND weight <= 1", name="route_weight"),
    )

    model_id: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    weight: float


class RouteGenerationRow(SQLModel, table=True):
    """One row, raised with every write of routes: what replicas poll."""

    __tablename__ = "route_generation"

    id: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    value: int


class ServingConfigRow(SQLModel, table=True):
    """What was set of a model's ModelServingConfig; what is not in it has its default."""

    __tablename__ = "serving_config"

    model_id: str = Field(primary_key=True)
    given: dict[str, Any] = Field(sa_type=JsonColumn, description="field -> value")
    updated_at: datetime = Field(sa_type=UtcDateTime)
    updated_by: str


class DesiredVersionRow(SQLModel, table=True):
    """A version that every replica should hold, routed or not; the control plane asks for it before it routes."""

    __tablename__ = "desired_version"
    __table_args__ = (
        ForeignKeyConstraint(
            ["model_id", "version"], ["model_version.model_id", "model_version.version"], name="desired_version_kept"
        ),
    )

    model_id: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    attempt: int = Field(default=1, description="raised to have a version loaded anew, warm-up included")
    pinned: bool = Field(default=False, description="never evicted, as the last known good version")
    wanted_at: datetime = Field(sa_type=UtcDateTime)


class ReplicaRow(SQLModel, table=True):
    """One running data plane, as it last said itself."""

    __tablename__ = "replica"

    replica: str = Field(primary_key=True, description="host:port")
    url: str = Field(description="where it answers")
    started_at: datetime = Field(sa_type=UtcDateTime)
    heartbeat_ms: int = Field(sa_type=BigInteger, description="milliseconds since 1970, the database's clock")
    generation: int = Field(description="the route generation that every HTTP process of it has applied")
    revisions: dict[str, int] = Field(sa_type=JsonColumn, description="model -> revision of the routes it has applied")
    workers: list[dict[str, Any]] = Field(sa_type=JsonColumn, description="id, pid, spare, rss_mb of each")


class ReplicaVersionRow(SQLModel, table=True):
    """What a replica made of a version it should hold."""

    __tablename__ = "replica_version"

    replica: str = Field(primary_key=True)
    model_id: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    state: str = Field(description="loading, ready or failed")
    attempt: int = Field(description="which attempt of the desired version this is about")
    reason: str | None = Field(default=None, description="why it failed")
    facts: dict[str, Any] = Field(sa_type=JsonColumn, description="kind, classes, engine, timings; see LoadReport")
    changed_at: datetime = Field(sa_type=UtcDateTime)
