"""The control plane's own tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint
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
