"""Alembic's entry: runs the migrations on the connection that control_plane/storage/setup.py opened."""

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

import control_plane.storage.tables  # noqa: F401 (registers the tables)
import serving.store.tables  # noqa: F401 (registers the tables)

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    transaction_per_migration=False,  # all of an upgrade or nothing: a killed one leaves the old schema whole
    render_as_batch=connection.dialect.name == "sqlite",
)
# The caller's transaction is the transaction: Alembic must not open or commit one of its own.
context.run_migrations()
