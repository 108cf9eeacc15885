"""Folders whose names are on the disk: a file of which only the bytes are there is gone after a power cut."""

import os
from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that they survive a power cut. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
