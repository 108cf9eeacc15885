"""The prediction log: predictions, clients' ids of them, payloads, roll-ups, and how far each spool is read.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

from serving.store.keys import Key

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To 0003."""
    op.create_table(
        "prediction",
        sa.Column("id", Key(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("arm", sa.String(), nullable=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=True),
        sa.Column("arrived_us", sa.BigInteger(), nullable=False),
        sa.Column("event_us", sa.BigInteger(), nullable=False),
        sa.Column("latency_us", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("label", sa.String(), nullable=True),
        sa.Column("score", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", "row"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "prediction_alias",
        sa.Column("client_key", Key(), nullable=False),
        sa.Column("id", Key(), nullable=False),
        sa.Column("body_digest", Key(), nullable=True),
        sa.PrimaryKeyConstraint("client_key"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_prediction_alias_id", "prediction_alias", ["id"])
    op.create_table(
        "payload_chunk",
        sa.Column("first_id", Key(), nullable=False),
        sa.Column("last_id", Key(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("first_id"),
    )
    op.create_table(
        "rollup",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("resolution", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("latency_sum", sa.Float(), nullable=False),
        sa.Column("histogram", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "resolution", "start", "version", "arm", "role", "status", "source"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "spool_position",
        sa.Column("spool", sa.String(), nullable=False),
        sa.Column("segment", sa.BigInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("taken", sa.BigInteger(), nullable=False),
        sa.Column("torn", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.Column("repeated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("spool"),
    )


def downgrade() -> None:
    """Back to 0002: every logged prediction is gone afterwards. What is still in the spools stays there."""
    for table in ("spool_position", "rollup", "payload_chunk", "prediction_alias", "prediction"):
        op.drop_table(table)
