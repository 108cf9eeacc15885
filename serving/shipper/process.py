"""The process that ships: started by the data plane, ends on SIGTERM and with its parent."""

import gc
import math
import multiprocessing
import multiprocessing.connection
import signal
import socket
import time
from pathlib import Path
from typing import Any

from serving.logs import configure_logging
from serving.shipper.shipping import Shipper
from serving.store import open_database

_LAST_SECONDS = 1.5


def run_shipper(database_url: str, database_timeout: float, spool_folder: Path, source: str, log_level: str) -> None:
    """Store what the HTTP processes below `spool_folder` have recorded, until told to end or left by the parent.

    Before it ends it takes along what waits, until 1.5 s after it was told: after a clean stop nothing is left where the
    database answers and requests have not kept all cores busy. `source` names the data plane in the database, as host:port. Raises DatabaseUnreachable when the address
    cannot be understood; a database that is missing, locked or of another schema is waited for.
    """
    configure_logging("data-plane", log_level)
    # Records come in thousands and hold no cycles, so looking for some would mostly cost time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    end = _End()
    database = open_database(database_url, database_timeout)
    try:
        shipper = Shipper(database, spool_folder, source)
        shipper.run(end.sleep)
        shipper.drain(_LAST_SECONDS - (time.monotonic() - end.told_at))
    finally:
        database.close()


class _End:
    """Comes with SIGTERM, or when the parent is gone."""

    def __init__(self) -> None:
        self._told = False
        self.told_at = math.inf
        """On the monotonic clock."""
        incoming, outgoing = socket.socketpair()
        incoming.setblocking(False)
        outgoing.setblocking(False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides the order
        signal.signal(signal.SIGTERM, self._tell)
        signal.set_wakeup_fd(outgoing.detach())
        parent = multiprocessing.parent_process()
        self._watched: list[Any] = [incoming] if parent is None else [incoming, parent.sentinel]

    def sleep(self, seconds: float) -> bool:
        """So long, or until the end; whether it has come."""
        if not self._told:
            self._told = bool(multiprocessing.connection.wait(self._watched, seconds))
        if self._told:
            self.told_at = min(self.told_at, time.monotonic())
        return self._told

    def _tell(self, *_: object) -> None:
        self._told = True
        self.told_at = min(self.told_at, time.monotonic())
