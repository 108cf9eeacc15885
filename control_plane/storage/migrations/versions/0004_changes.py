"""Changes of what serves with their steps, and the last probe of each model.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

from serving.store.types import JsonColumn, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To 0004."""
    op.create_table(
        "change",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=True),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("requested_by", sa.String(), nullable=False),
        sa.Column("trigger", sa.String(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("options", JsonColumn, nullable=False),
        sa.Column("plan", JsonColumn, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("detail", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    under_way = sa.text("ended_at IS NULL")
    op.create_index(
        "change_under_way", "change", ["model_id"], unique=True, sqlite_where=under_way, postgresql_where=under_way
    )
    op.create_index("change_idempotency", "change", ["model_id", "idempotency_key"], unique=True)
    op.create_index("ix_change_created_at", "change", ["created_at"])
    op.create_table(
        "change_step",
        sa.Column("change_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("evidence", JsonColumn, nullable=False),
        sa.ForeignKeyConstraint(["change_id"], ["change.id"], name="change_step_change"),
        sa.PrimaryKeyConstraint("change_id", "number"),
    )
    op.create_table(
        "health_probe",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("checked_at", UtcDateTime(), nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("successes", sa.Integer(), nullable=False),
        sa.Column("down", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("model_id"),
    )


def downgrade() -> None:
    """Back to 0003: the record of changes is gone afterwards."""
    for table in ("health_probe", "change_step", "change"):
        op.drop_table(table)
