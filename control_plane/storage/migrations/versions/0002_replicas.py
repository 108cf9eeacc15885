"""Replicas: how models are served, what should be loaded, and what each data plane says it holds.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

from serving.store.types import JsonColumn, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To 0002."""
    op.create_table(
        "serving_config",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("given", JsonColumn, nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("updated_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("model_id"),
    )
    op.create_table(
        "desired_version",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("wanted_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "version"], ["model_version.model_id", "model_version.version"], name="desired_version_kept"
        ),
        sa.PrimaryKeyConstraint("model_id", "version"),
    )
    op.create_table(
        "replica",
        sa.Column("replica", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("heartbeat_ms", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("revisions", JsonColumn, nullable=False),
        sa.Column("workers", JsonColumn, nullable=False),
        sa.PrimaryKeyConstraint("replica"),
    )
    op.create_table(
        "replica_version",
        sa.Column("replica", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("facts", JsonColumn, nullable=False),
        sa.Column("changed_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("replica", "model_id", "version"),
    )


def downgrade() -> None:
    """Back to 0001: what was set of each model's serving is gone afterwards."""
    for table in ("replica_version", "replica", "desired_version", "serving_config"):
        op.drop_table(table)
