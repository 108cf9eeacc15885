"""Which installation a database belongs to."""

from sqlmodel import Session, select

from control_plane.storage.tables import InstallationRow


def read_installation(session: Session) -> str:
    """The id that was made with the database; a backup that is restored keeps it."""
    return session.exec(select(InstallationRow.id)).one()
