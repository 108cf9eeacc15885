"""Making a database ours: creation, upgrade and downgrade, always asked for by name."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config

from control_plane.errors import FolderNotWritable
from serving.errors import DatabaseEmpty, DatabaseMissing, SchemaNewer, SchemaOlder
from serving.store.database import Database, connect, open_database, parse_url
from serving.store.schema import CURRENT, REVISIONS

MIGRATIONS = Path(__file__).parent / "migrations"


def create_database(url: str, timeout: float) -> None:
    """Create the database of this address with the current schema; upgrade it where it exists.

    On PostgreSQL the database itself must exist, as an administrator makes it; it may be empty.

    Raises:
        FolderNotWritable: SQLite's folder cannot be made or written to.
        DatabaseUnavailable: it cannot be used, or has a newer schema.
    """
    file = open_database(url, timeout).file
    if file is not None:
        _make_folder(file.parent)
    database = connect(parse_url(url), timeout, create=True)
    try:
        _refuse_newer(database)
        _run(database, "upgrade", "head")
        if file is not None:
            file.chmod(0o600)  # routes and, later, feature values: nobody else's business
    finally:
        database.close()


def upgrade_database(url: str, timeout: float) -> None:
    """Bring an existing database of ours to the current schema.

    Raises:
        DatabaseMissing, DatabaseEmpty: there is nothing to upgrade; creating is another call.
        DatabaseUnavailable: it cannot be used, or has a newer schema.
    """
    database = open_database(url, timeout)
    try:
        if database.schema is None:
            raise DatabaseEmpty(database.name)
        _refuse_newer(database)
        _run(database, "upgrade", "head")
    finally:
        database.close()


def downgrade_database(url: str, timeout: float, revision: str) -> None:
    """Take a database back to an older schema, or to none with `base`; data of newer tables is lost.

    Raises:
        SchemaOlder: `revision` is not an older one than what it has; the text says which are known.
        DatabaseUnavailable: it cannot be used, or has a newer schema.
    """
    database = open_database(url, timeout)
    try:
        found = database.schema
        if found is None:
            raise DatabaseEmpty(database.name)
        _refuse_newer(database)
        if revision != "base" and revision not in REVISIONS[: REVISIONS.index(found) + 1]:
            raise SchemaOlder(database.name, found, f"one of base, {', '.join(REVISIONS)}; '{revision}' is not older")
        _run(database, "downgrade", revision)
    finally:
        database.close()


def prepare_database(url: str, timeout: float, *, embedded_in: Path | None) -> None:
    """What `switchyard up` does with the database before it starts anything on it.

    The embedded one, in the data folder `embedded_in`, is created on the first start that gets that far, also where an
    earlier one was killed half-way, and upgraded on later ones. Where it should exist and does not, nothing is created:
    an empty database would look like a system that serves no model. One given by address is never touched, only looked
    at: others may be working on it.

    Raises:
        DatabaseUnavailable: it cannot be used as it is.
    """
    if embedded_in is None:
        database = open_database(url, timeout)
        try:
            database.check()
        finally:
            database.close()
        return
    mark = embedded_in / "installation.json"
    if mark.exists():
        upgrade_database(url, timeout)
        return
    # The file alone says nothing: a start that was killed while it created the database leaves an empty one.
    create_database(url, timeout)
    mark.write_text(json.dumps({"created_at": datetime.now(UTC).isoformat(), "schema": CURRENT}) + "\n")


def _refuse_newer(database: Database) -> None:
    try:
        found = database.schema
    except (DatabaseMissing, DatabaseEmpty):
        return  # about to be created
    if found is not None and found not in REVISIONS:
        raise SchemaNewer(database.name, found, CURRENT)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderNotWritable(str(folder), "SWITCHYARD_DATABASE_URL", os.strerror(error.errno or 0)) from error


def _run(database: Database, direction: str, revision: str) -> None:
    """All migrations of one call in one transaction: both databases roll back tables as well as rows."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.translated(), database.engine.begin() as connection:
        config.attributes["connection"] = connection
        getattr(command, direction)(config, revision)
