"""Shipper: all spools of a data plane into the database, in short transactions with pauses, oldest first."""

import time
from collections.abc import Callable
from pathlib import Path

from serving.errors import DatabaseUnavailable
from serving.logs import logger
from serving.shipper.durability import Durability
from serving.shipper.kinds import Payloads, Predictions
from serving.shipper.low_priority import LowPriority
from serving.shipper.stream import Stream
from serving.spool import PAYLOADS, PREDICTIONS, spool_state, streams
from serving.store import Database
from serving.store.rollups import FINE_SECONDS, RESOLUTIONS, prune_rollups

TICK = 0.1
"""Seconds between two looks at the spools."""
QUIET_TICK = 1.0
"""The same when nothing has come for a while: looking costs more than all else that an idle data plane does."""
_QUIET_AFTER = 3.0

_ROUND_SECONDS = 0.5
_LONGEST_PAUSE = 5.0
_PRUNE_SECONDS = 600.0

log = logger(__name__)

Sleep = Callable[[float], bool]
"""Sleeps for so many seconds; whether it is time to end."""


class Shipper:
    """Stores what waits below a spool folder, also in spools of HTTP processes that are no more."""

    def __init__(self, database: Database, spool_folder: Path, source: str) -> None:
        """`source`: the data plane's name, such as host:port."""
        self._database = database
        self._spool_folder = spool_folder
        self._source = source
        self._durability = Durability(database)
        self._streams: dict[Path, Stream] = {}
        self._low_priority = LowPriority()
        self._ending = False
        self._outage_pause = 0.0
        self._stored_at = time.monotonic()
        self._out_since = 0.0
        self._prune_at = time.monotonic() + _PRUNE_SECONDS

    def run(self, sleep: Sleep) -> None:
        """Store what comes, until it is time to end. No failure ends it: what cannot be stored yet waits on disk."""
        while not sleep(self._outage_pause or self._tick()):
            self._attempt(lambda: self._store_all(sleep))

    def _tick(self) -> float:
        return QUIET_TICK if self._is_quiet() else TICK

    def _is_quiet(self) -> bool:
        return time.monotonic() >= self._stored_at + _QUIET_AFTER

    def drain(self, seconds: float) -> None:
        """Store everything that waits, without pauses, for so long at most. Raises nothing."""
        until = time.monotonic() + seconds
        self._ending = True
        self._attempt(lambda: self._store_all(lambda _: time.monotonic() >= until, patient=False))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except DatabaseUnavailable as problem:
            self._note_outage(problem.detail)
        except Exception as problem:  # noqa: BLE001  # of ours or of the disk: ending would only hide it behind restarts
            self._note_outage(type(problem).__name__, exc_info=True)
        else:
            self._note_success()

    def _store_all(self, sleep: Sleep, *, patient: bool = True) -> None:
        predictions, payloads = self._of_kind(Predictions), self._of_kind(Payloads)
        if self._store_round(predictions, sleep, _ROUND_SECONDS, patient=patient):
            return
        # A transaction of them at least, whatever else waits.
        seconds = 0.0 if any(each.is_late() for each in predictions) else _ROUND_SECONDS
        if not self._store_round(payloads, sleep, seconds, patient=patient):
            self._prune()

    def _store_round(self, candidates: list[Stream], sleep: Sleep, seconds: float, *, patient: bool) -> bool:
        """What these hold now, always the oldest first; whether it is time to end.

        One transaction each, and more where there was more to read: what trickles in meanwhile waits for the next tick.
        It takes about so many seconds at most, when `patient`: under load there is always more, and others wait too.
        """
        until = time.monotonic() + seconds
        ready = [each for each in candidates if self._look(each, patient=patient)]
        while ready:
            self._stored_at = time.monotonic()
            oldest = min(ready, key=lambda each: each.head)
            began = time.monotonic()
            more = self._ship(oldest)
            # SQLite's writers do not queue: whoever comes back at once starves all others.
            if sleep(time.monotonic() - began):
                return True
            if patient and time.monotonic() >= until:
                break
            if not (more and self._look(oldest, patient=patient)):
                ready.remove(oldest)
        return False

    def _look(self, stream: Stream, *, patient: bool) -> bool:
        return self._do(stream, lambda: stream.look(self._database, patient=patient))

    def _ship(self, stream: Stream) -> bool:
        return self._do(stream, lambda: stream.ship(self._database, self._durability))

    def _do(self, stream: Stream, work: Callable[[], bool]) -> bool:
        # While it is quiet there is nobody to give way to, and handing over takes longer than looking.
        here = self._ending or self._is_quiet() or stream.is_late()
        return work() if here else self._low_priority.do(work)

    def _of_kind(self, kind: type[Stream]) -> list[Stream]:
        name = PREDICTIONS if kind is Predictions else PAYLOADS
        return [
            self._streams.setdefault(folder.path, kind(folder, self._source))
            for folder in streams(self._spool_folder, name)
        ]

    def _prune(self) -> None:
        if time.monotonic() < self._prune_at:
            return
        self._prune_at = time.monotonic() + _PRUNE_SECONDS
        with self._database.writing() as session:
            prune_rollups(session, RESOLUTIONS[-1], time.time() - FINE_SECONDS)

    def _note_outage(self, problem: str, *, exc_info: bool = False) -> None:
        for each in self._streams.values():
            each.forget()
        if not self._outage_pause:  # said once, not at every attempt
            self._out_since = time.monotonic()
            log.warning("predictions wait on disk, they cannot be stored", problem=problem, exc_info=exc_info)
        self._outage_pause = min(_LONGEST_PAUSE, 2 * self._outage_pause or TICK)

    def _note_success(self) -> None:
        if self._outage_pause:
            waited = round(time.monotonic() - self._out_since, 1)
            waiting = spool_state(self._spool_folder).waiting_bytes
            log.info("predictions are stored again", after=waited, waiting_bytes=waiting)
        self._outage_pause = 0.0
