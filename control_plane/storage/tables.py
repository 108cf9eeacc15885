"""The control plane's own tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Index, text
from sqlmodel import Field, SQLModel

from serving.store.types import JsonColumn, UtcDateTime


class InstallationRow(SQLModel, table=True):
    """One row, made with the tables: which installation this database belongs to."""

    __tablename__ = "installation"

    id: str = Field(primary_key=True, description="a UUID; copied with a backup, new in a new database")
    created_at: datetime = Field(sa_type=UtcDateTime)


class LeaseRow(SQLModel, table=True):
    """Who may act on something until when. The token grows with each new holder and fences out the old one."""

    __tablename__ = "lease"

    name: str = Field(primary_key=True)
    holder: str
    token: int = Field(sa_type=BigInteger)
    expires_at_ms: int = Field(sa_type=BigInteger, description="milliseconds since 1970, the database's clock")


class RouteWriteRow(SQLModel, table=True):
    """The record of one write of routes: who, why, under which token, and what stood there afterwards."""

    __tablename__ = "route_write"

    model_id: str = Field(primary_key=True)
    revision: int = Field(primary_key=True)
    routes: dict[str, float] = Field(sa_type=JsonColumn, description="version -> weight")
    holder: str
    token: int = Field(sa_type=BigInteger)
    reason: str
    written_at: datetime = Field(sa_type=UtcDateTime)


class AliasProjectionRow(SQLModel, table=True):
    """What an alias in MLflow should say, and what we last made it say."""

    __tablename__ = "alias_projection"
    __table_args__ = (CheckConstraint("attempts >= 0", name="alias_projection_attempts"),)

    model_id: str = Field(primary_key=True)
    alias: str = Field(primary_key=True)
    wanted: str | None = Field(description="version; null: the alias should not exist")
    written: str | None = Field(default=None, description="the last value of ours that MLflow confirmed")
    pending: bool = Field(default=True, index=True)
    changed_at: datetime = Field(sa_type=UtcDateTime)
    written_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    attempts: int = 0
    problem: str | None = None

    def facts(self) -> dict[str, Any]:
        """The row as the API shows it."""
        return self.model_dump(mode="json")


_UNDER_WAY = text("ended_at IS NULL")


class ChangeRow(SQLModel, table=True):
    """One change of what serves, from the wish to its end. The partial index lets one a model be under way."""

    __tablename__ = "change"
    __table_args__ = (
        Index("change_under_way", "model_id", unique=True, sqlite_where=_UNDER_WAY, postgresql_where=_UNDER_WAY),
        Index("change_idempotency", "model_id", "idempotency_key", unique=True),
    )

    id: str = Field(primary_key=True, description="a UUID")
    kind: str = Field(description="promote or rollback")
    model_id: str
    source: str | None = Field(default=None, description="the version with the largest share when it was asked for")
    target: str = Field(description="a version; until it was looked up, what was given")
    mode: str = Field(description="staged or instant")
    state: str = Field(description="see control_plane/rollback/states.py")
    reason: str
    requested_by: str
    trigger: str = Field(description="what asked for it: api, ...")
    idempotency_key: str | None = None
    options: dict[str, Any] = Field(sa_type=JsonColumn, description="as asked for: requested, skip_gates, ...")
    plan: list[dict[str, Any]] = Field(sa_type=JsonColumn, description="what will be done, in order")
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)
    updated_at: datetime = Field(sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    detail: str = Field(default="", description="why it ended as it did")


class ChangeStepRow(SQLModel, table=True):
    """One step of a change: written before the act as its intent, completed with evidence after it."""

    __tablename__ = "change_step"
    __table_args__ = (ForeignKeyConstraint(["change_id"], ["change.id"], name="change_step_change"),)

    change_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    name: str = Field(description="the state it belongs to")
    state: str = Field(description="running, passed, failed or skipped")
    started_at: datetime = Field(sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    evidence: dict[str, Any] = Field(sa_type=JsonColumn)


class HealthProbeRow(SQLModel, table=True):
    """What the last probe of a model through the real path found."""

    __tablename__ = "health_probe"

    model_id: str = Field(primary_key=True)
    version: str
    checked_at: datetime = Field(sa_type=UtcDateTime)
    ok: bool | None = Field(description="null: it could not be probed, problem says why")
    seconds: float | None = None
    failures: int = Field(default=0, description="in a row")
    successes: int = Field(default=0, description="in a row")
    down: bool = Field(default=False, description="after three failures in a row, until two successes in a row")
    problem: str | None = None
