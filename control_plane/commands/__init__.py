"""The commands that ask a running Switchyard over HTTP, one file a group."""

import typer

from control_plane.commands import listing, predict, promote, status


def register(app: typer.Typer) -> None:
    """Add them all."""
    for group in (listing, status, promote, predict):
        group.register(app)
