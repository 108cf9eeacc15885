"""Predictions on disk, on their way to the database: streams of frames in segments, one writer each."""

from serving.spool.files import StreamFolder
from serving.spool.frames import Frame, framed, read_frames
from serving.spool.source import kept_source
from serving.spool.state import SpoolState, spool_state, streams
from serving.spool.writer import PAYLOADS, PREDICTIONS, Spool, SpoolWriter

__all__ = [
    "PAYLOADS",
    "PREDICTIONS",
    "Frame",
    "Spool",
    "SpoolState",
    "SpoolWriter",
    "StreamFolder",
    "framed",
    "kept_source",
    "read_frames",
    "spool_state",
    "streams",
]
