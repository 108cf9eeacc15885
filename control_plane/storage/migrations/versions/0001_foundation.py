"""Foundation: kept versions, routes, leases, alias projections.

Revision: 0001, the first
"""

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from serving.store.types import JsonColumn, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To 0001."""
    op.create_table(
        "model_version",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("tags", JsonColumn, nullable=False),
        sa.Column("metrics", JsonColumn, nullable=False),
        sa.Column("signature", JsonColumn, nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=True),
        sa.Column("kept_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "version"),
    )
    op.create_index("ix_model_version_digest", "model_version", ["digest"])
    op.create_table(
        "routing",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("model_id"),
    )
    op.create_table(
        "route",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.CheckConstraint("weight >= 0 AND weight <= 1", name="route_weight"),
        sa.ForeignKeyConstraint(
            ["model_id", "version"], ["model_version.model_id", "model_version.version"], name="route_version"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["routing.model_id"], name="route_routing"),
        sa.PrimaryKeyConstraint("model_id", "version"),
    )
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(installation, [{"id": str(uuid.uuid4()), "created_at": datetime.now(UTC)}])
    generation = op.create_table(
        "route_generation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(generation, [{"id": 1, "value": 0}])
    op.create_table(
        "lease",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "route_write",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("routes", JsonColumn, nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("written_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "revision"),
    )
    op.create_table(
        "alias_projection",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("wanted", sa.String(), nullable=True),
        sa.Column("written", sa.String(), nullable=True),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("changed_at", UtcDateTime(), nullable=False),
        sa.Column("written_at", UtcDateTime(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("problem", sa.String(), nullable=True),
        sa.CheckConstraint("attempts >= 0", name="alias_projection_attempts"),
        sa.PrimaryKeyConstraint("model_id", "alias"),
    )
    op.create_index("ix_alias_projection_pending", "alias_projection", ["pending"])


def downgrade() -> None:
    """Back to nothing: the data of these tables is gone afterwards."""
    for table in (
        "alias_projection",
        "route_write",
        "lease",
        "route_generation",
        "route",
        "routing",
        "model_version",
        "installation",
    ):
        op.drop_table(table)
