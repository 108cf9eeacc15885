"""Opening the database: what exists is opened, nothing is created by accident, trouble is named."""

import multiprocessing
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from control_plane.storage.setup import (
    create_database,
    downgrade_database,
    prepare_database,
    upgrade_database,
)
from serving.errors import (
    DatabaseDamaged,
    DatabaseEmpty,
    DatabaseLocked,
    DatabaseMissing,
    DatabaseReadOnly,
    DatabaseUnavailable,
    DatabaseUnreachable,
    SchemaNewer,
    SchemaOlder,
)
from serving.store import Database, ModelVersionRow, open_database
from serving.store.schema import CURRENT
from tests.rows import kept_version


def test_missing_sqlite_file_is_not_created(tmp_path: Path) -> None:
    """A mistyped path would otherwise become an empty system that serves no model."""
    database = open_database(f"sqlite:///{tmp_path / 'typo.db'}", timeout=1)
    with pytest.raises(DatabaseMissing, match="switchyard database upgrade --create"):
        database.check()
    with pytest.raises(DatabaseMissing), database.writing():
        pass
    with pytest.raises(DatabaseMissing):
        upgrade_database(f"sqlite:///{tmp_path / 'typo.db'}", timeout=1)
    assert list(tmp_path.iterdir()) == []


def test_empty_file_counts_as_unreachable_and_stays_empty(tmp_path: Path) -> None:
    """A file that a failed copy left behind would otherwise pass for a database without routes."""
    file = tmp_path / "empty.db"
    file.touch()
    with pytest.raises(DatabaseEmpty):
        open_database(f"sqlite:///{file}", timeout=1).check()
    with pytest.raises(DatabaseEmpty):
        upgrade_database(f"sqlite:///{file}", timeout=1)
    assert file.stat().st_size == 0


def test_database_without_our_tables_is_refused(database_url: str) -> None:
    """Somebody else's database must not be taken for ours, nor filled without being asked."""
    create_database(database_url, timeout=5)
    downgrade_database(database_url, timeout=5, revision="base")
    database = open_database(database_url, timeout=5)
    with pytest.raises(DatabaseEmpty), database.reading():
        pass
    with pytest.raises(DatabaseEmpty):
        upgrade_database(database_url, timeout=5)
    database.close()


def test_newer_schema_is_refused_everywhere(database: Database, database_url: str) -> None:
    """An older Switchyard writing into a newer schema would destroy what it does not know."""
    with database.writing() as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    reopened = open_database(database_url, timeout=5)
    with pytest.raises(SchemaNewer, match=r"9999, which is newer than .* knows \(" + CURRENT):
        reopened.check()
    with pytest.raises(SchemaNewer), reopened.writing():
        pass
    for work in (create_database, upgrade_database):
        with pytest.raises(SchemaNewer):
            work(database_url, 5)
    reopened.close()


def test_older_schema_is_refused_with_the_command_to_run(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that needs a column which is not there yet would fail at night instead of at the start."""
    monkeypatch.setattr("serving.store.database.CURRENT", "0002")
    with pytest.raises(SchemaOlder, match="switchyard database upgrade"):
        database.check()


def test_not_a_database_is_said_so(tmp_path: Path) -> None:
    """A wrong file must not be overwritten."""
    file = tmp_path / "notes.txt"
    file.write_text("my notes " * 500)
    with pytest.raises(DatabaseDamaged, match="file is not a database"):
        open_database(f"sqlite:///{file}", timeout=1).check()
    assert file.read_text().startswith("my notes")


def test_unreachable_postgresql_answers_soon_and_without_the_password(postgresql: str) -> None:
    """An on-call person needs the address in the message, and nobody needs the password in the log."""
    url = "postgresql://somebody:hunter2@127.0.0.1:1/nowhere"
    with pytest.raises(DatabaseUnreachable) as caught:
        open_database(url, timeout=2).check()
    assert "hunter2" not in caught.value.detail
    assert "127.0.0.1:1" in caught.value.detail
    assert "SWITCHYARD_DATABASE_URL" in caught.value.detail


@pytest.mark.parametrize(
    "url", ["mysql://localhost/x", "nonsense", "sqlite://", "sqlite:///:memory:", "mongodb://u:pw@h/x"]
)
def test_addresses_that_cannot_work_are_refused_with_what_would(url: str) -> None:
    """The message must show the form that works, and hide the password."""
    with pytest.raises(DatabaseUnreachable, match="postgresql://user:password@host/name") as caught:
        open_database(url, timeout=1)
    assert "pw" not in caught.value.detail


def test_another_writers_lock_is_waited_for_and_then_named(database: Database, database_url: str) -> None:
    """A stuck writer must lead to a clear answer after the configured time, not to a hang or a traceback."""
    impatient = open_database(database_url, timeout=0.3)
    impatient.check()
    with database.writing() as session:
        session.connection().execute(text("UPDATE route_generation SET value = 1"))
        with pytest.raises(DatabaseLocked), impatient.writing() as other:
            other.connection().execute(text("UPDATE route_generation SET value = 2"))
    with impatient.writing() as other:
        other.connection().execute(text("UPDATE route_generation SET value = 3"))
    impatient.close()


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    """Health and lists must answer while something is being shipped."""
    with database.writing() as session:
        session.connection().execute(text("UPDATE route_generation SET value = 7"))
        with database.reading() as reader:
            assert reader.connection().execute(text("SELECT value FROM route_generation")).scalar_one() == 0


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    """Half of a change would be worse than none."""
    with pytest.raises(RuntimeError), database.writing() as session:
        session.add(kept_version("flights", "1"))
        session.flush()
        raise RuntimeError
    with database.reading() as session:
        assert session.exec(select(ModelVersionRow)).all() == []


def _add_one(url: str, times: int) -> None:
    database = open_database(url, timeout=30)
    for _ in range(times):
        with database.writing() as session:
            suffix = "" if database.file else " FOR UPDATE"
            value = session.connection().execute(text(f"SELECT value FROM route_generation{suffix}")).scalar_one()
            session.connection().execute(text("UPDATE route_generation SET value = :v"), {"v": value + 1})
    database.close()


def test_read_modify_write_from_many_processes_loses_nothing(database: Database, database_url: str) -> None:
    """A deferred SQLite transaction fails at once when another one wrote in between, whatever the timeout."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_one, args=(database_url, 40)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    with database.reading() as session:
        assert session.connection().execute(text("SELECT value FROM route_generation")).scalar_one() == 160


def test_file_deleted_under_an_open_connection_is_noticed(tmp_path: Path) -> None:
    """SQLite goes on writing into a deleted file, and everything written is lost."""
    file = tmp_path / "switchyard.db"
    create_database(f"sqlite:///{file}", timeout=5)
    database = open_database(f"sqlite:///{file}", timeout=5)
    database.check()
    file.unlink()
    with pytest.raises(DatabaseMissing), database.writing():
        pass
    database.close()


def test_file_replaced_by_a_backup_is_used_from_then_on(tmp_path: Path) -> None:
    """After a restore the restored data must show, not the pages of the file before it."""
    file, backup = tmp_path / "switchyard.db", tmp_path / "backup.db"
    for each in (file, backup):
        create_database(f"sqlite:///{each}", timeout=5)
    restored = open_database(f"sqlite:///{backup}", timeout=5)
    with restored.writing() as session:
        session.add(kept_version("flights", "8"))
    restored.close()
    database = open_database(f"sqlite:///{file}", timeout=5)
    with database.reading() as session:
        assert session.exec(select(ModelVersionRow)).all() == []
    for left_over in ("-wal", "-shm"):
        Path(f"{file}{left_over}").unlink(missing_ok=True)
    backup.replace(file)
    with database.reading() as session:
        assert [row.version for row in session.exec(select(ModelVersionRow))] == ["8"]
    database.close()


def test_checking_does_not_drop_the_locks_of_this_process(tmp_path: Path) -> None:
    """Opening and closing the file beside SQLite drops its POSIX locks, and a second writer gets in."""
    file = tmp_path / "switchyard.db"
    create_database(f"sqlite:///{file}", timeout=5)
    database = open_database(f"sqlite:///{file}", timeout=5)
    with database.writing():
        database.check()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            _begin_in_another_process(file)
    database.close()


def _begin_in_another_process(file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(_begin, (str(file),))


def _begin(file: str) -> None:
    sqlite3.connect(file, timeout=0.1, isolation_level=None).execute("BEGIN IMMEDIATE")


def test_times_are_kept_in_utc_and_never_without_a_zone(database: Database) -> None:
    """A naive time would be read back as another moment on a server in another zone."""
    tokyo = timezone(timedelta(hours=9))
    with database.writing() as session:
        session.add(kept_version("flights", "1", created_at=datetime(2013, 7, 1, 9, tzinfo=tokyo)))
    with database.reading() as session:
        found = session.get_one(ModelVersionRow, ("flights", "1")).created_at
    assert found == datetime(2013, 7, 1, tzinfo=UTC)
    assert found.utcoffset() == timedelta(0)
    with pytest.raises(Exception, match="without a zone"), database.writing() as session:
        session.add(kept_version("flights", "2", created_at=datetime(2013, 7, 1)))  # noqa: DTZ001 (the point)


def test_errors_of_statements_do_not_carry_values(database: Database) -> None:
    """Feature values and labels would end up in logs through an exception's text."""
    with pytest.raises(Exception, match=r"(?i)unique|duplicate") as caught, database.writing() as session:
        for _ in range(2):
            session.connection().execute(
                text("INSERT INTO lease VALUES (:name, 'h', 1, 0)"), {"name": "secret-feature-value"}
            )
    assert "[SQL parameters hidden" in str(caught.value)


def test_first_start_creates_the_embedded_database_and_later_ones_never(tmp_path: Path) -> None:
    """A lost database must be noticed, not replaced by an empty one that serves nothing."""
    url = f"sqlite:///{tmp_path / 'switchyard.db'}"
    prepare_database(url, 5, embedded_in=tmp_path)
    prepare_database(url, 5, embedded_in=tmp_path)
    open_database(url, 5).check()
    (tmp_path / "switchyard.db").unlink()
    with pytest.raises(DatabaseMissing, match="restore the file from a backup"):
        prepare_database(url, 5, embedded_in=tmp_path)
    assert not (tmp_path / "switchyard.db").exists()


def test_a_database_given_by_address_is_never_changed_by_a_start(database_url: str) -> None:
    """On a shared database one host's upgrade would break the others."""
    with pytest.raises(DatabaseUnavailable):
        prepare_database(database_url, 5, embedded_in=None)
    create_database(database_url, 5)
    prepare_database(database_url, 5, embedded_in=None)


def test_sqlite_file_is_only_the_owners_business(tmp_path: Path) -> None:
    """Routes and, later, feature values are not for every user of the machine."""
    create_database(f"sqlite:///{tmp_path / 'sub' / 'switchyard.db'}", timeout=5)
    assert (tmp_path / "sub" / "switchyard.db").stat().st_mode & 0o077 == 0


def test_read_only_file_is_said_so(tmp_path: Path) -> None:
    """A wrong mount must be named, not end in a traceback."""
    file = tmp_path / "switchyard.db"
    create_database(f"sqlite:///{file}", timeout=5)
    database = open_database(f"sqlite:///{file}", timeout=5)

    def write_read_only() -> None:
        with database.writing() as session:
            session.connection().exec_driver_sql("PRAGMA query_only=ON")
            session.connection().execute(text("UPDATE route_generation SET value = 1"))

    with pytest.raises(DatabaseReadOnly, match="cannot be written to"):
        write_read_only()
    database.close()


def test_a_schema_that_becomes_newer_is_noticed_by_the_next_transaction(database: Database, database_url: str) -> None:
    """Another host upgrades the shared database: processes of the older version must stop by themselves, unasked."""
    with database.writing():
        pass
    other = open_database(database_url, timeout=5)
    with other.writing() as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    other.close()
    with pytest.raises(SchemaNewer), database.writing():
        pass
    with pytest.raises(SchemaNewer), database.reading():
        pass


@pytest.mark.parametrize("url", ["postgresql://u:p@ss:hunter2/x@h/db", "mysql://h/db?password=hunter2"])
def test_a_password_that_breaks_the_address_is_not_shown(url: str) -> None:
    """It ends in a traceback, or in a ticket."""
    with pytest.raises(DatabaseUnreachable) as caught:
        open_database(url, timeout=1)
    assert "hunter2" not in caught.value.detail


def test_a_commit_changes_the_stamp_and_reading_does_not(tmp_path: Path) -> None:
    """A data plane would notice routes a second late, or ask the database four times a second for nothing."""
    real, link = tmp_path / "real" / "switchyard.db", tmp_path / "link.db"
    real.parent.mkdir()
    link.symlink_to(real)
    create_database(f"sqlite:///{real}", 5)
    with (
        closing(open_database(f"sqlite:///{real}", 5)) as writer,
        closing(open_database(f"sqlite:///{link}", 5)) as reader,
    ):
        for each in (writer, reader):
            for _ in range(2):  # the first to connect makes the log's file
                before = each.stamp()
                with reader.reading() as session:
                    session.connection().execute(text("SELECT value FROM route_generation"))
            assert each.stamp() == before
            with writer.writing() as session:
                session.connection().execute(text("UPDATE route_generation SET value = value + 1"))
            assert each.stamp() != before
    assert open_database("postgresql://nobody@127.0.0.1/none", 5).stamp() is None
