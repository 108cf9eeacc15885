"""Alembic migrations over the tables of both planes."""
