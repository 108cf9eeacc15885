"""Migrations: up and down, equal to the tables, all or nothing."""

from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlmodel import SQLModel

import control_plane.storage.tables
from control_plane.storage.setup import MIGRATIONS, create_database, downgrade_database, upgrade_database
from serving.errors import SchemaOlder
from serving.store import Database, open_database
from serving.store.database import connect, parse_url
from serving.store.schema import CURRENT, REVISIONS


def test_known_revisions_are_those_of_the_migrations() -> None:
    """The data plane would refuse a database that its own control plane has just upgraded."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert tuple(reversed([each.revision for each in scripts.walk_revisions()])) == REVISIONS
    assert scripts.get_current_head() == CURRENT


def test_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    """A column that the code has and the database has not fails only when a user comes by."""
    assert control_plane.storage.tables
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_down_to_nothing_and_up_again(database: Database, database_url: str) -> None:
    """An operator must be able to go back, and forward again."""
    downgrade_database(database_url, 5, "base")
    with database.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    create_database(database_url, 5)
    database.check()


def test_upgrade_keeps_what_is_there(database: Database, database_url: str) -> None:
    """Starting a newer version must never lose routes."""
    with database.writing() as session:
        session.connection().execute(text("UPDATE route_generation SET value = 42"))
    upgrade_database(database_url, 5)
    create_database(database_url, 5)
    with database.reading() as session:
        assert session.connection().execute(text("SELECT value FROM route_generation")).scalar_one() == 42


def test_a_migration_that_fails_halfway_leaves_the_old_schema_whole(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a schema could be neither used nor repaired by starting again."""
    import alembic.op

    def no_more(*_: object, **__: object) -> None:
        raise RuntimeError("the power went off")

    monkeypatch.setattr(alembic.op, "bulk_insert", no_more)
    with pytest.raises(RuntimeError, match="power"):
        create_database(database_url, 5)
    monkeypatch.undo()
    database = connect(parse_url(database_url), 5, create=True)
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    database.close()
    create_database(database_url, 5)
    with closing(open_database(database_url, 5)) as whole:
        whole.check()


def test_downgrade_to_what_is_not_older_is_refused(database: Database, database_url: str) -> None:
    """A mistyped revision must not end in a traceback from the middle of Alembic."""
    with pytest.raises(SchemaOlder, match="'12' is not older"):
        downgrade_database(database_url, 5, "12")
    database.check()
