"""Having a version ready on every live replica: keep its bytes, ask for it, wait for what the replicas say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from control_plane.registry import VersionManager
from control_plane.replicas import LIVE_SECONDS, Patience, Progress, Replica, Verdict, Waited, judge_preparation
from control_plane.storage.replicas import read_replicas, release_version, want_version
from serving.store import Database


def live_replicas(session: Session) -> list[Replica]:
    """Those that count: their heartbeat is younger than five seconds."""
    return read_replicas(session, within=LIVE_SECONDS)


class Waiting:
    """How long replicas have been waited for, as far as anybody looked.

    While nobody did, as with everything restarted or the database away, the replicas may not have been there either.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = self._began = self._alone_since = self._together_since = clock()

    @property
    def has_lapsed(self) -> bool:
        """Whether nobody has looked for so long that the next look begins anew."""
        return self._clock() - self._looked > LIVE_SECONDS

    def look(self, live: Sequence[Replica]) -> Waited:
        """Seconds until now, and of these the last ones without any live replica, or with one."""
        now = self._clock()
        if self.has_lapsed:
            self._began = self._alone_since = self._together_since = now
        if live:
            self._alone_since = now
        else:
            self._together_since = now
        self._looked = now
        return Waited(now - self._began, now - self._alone_since, now - self._together_since)


@dataclass(frozen=True)
class Prepared:
    """What preparing a version came to."""

    model_id: str
    version: str
    digest: str
    attempt: int
    progress: Progress

    @property
    def is_ready(self) -> bool:
        """Whether every live replica can answer for it."""
        return self.progress.verdict is Verdict.DONE


class Preparation:
    """Prepares versions for whoever wants one warm without routing to it, as the warm-up flow does."""

    def __init__(self, database: Database, versions: VersionManager, patience: Patience, *, poll: float = 0.1) -> None:
        """`poll`: seconds between two looks at what the replicas say."""
        self._database = database
        self._versions = versions
        self._patience = patience
        self._poll = poll

    def prepare(self, model_id: str, reference: str, on_progress: Callable[[Progress], None] | None = None) -> Prepared:
        """Have the version that a number or alias means loaded and warmed anew on every live replica; waits for that.

        A replica's refusal, none being there, or the time being up is a verdict in the result, not an exception.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound, InvalidVersionReference: there is no such version.
            VersionReplaced, VersionLost, ArtifactError: its bytes are not what was recorded, or cannot be had.
            RegistryUnreachable: it would have to be copied, and the registry cannot be asked.
            DatabaseUnavailable: nothing can be asked for.
        """
        version = self._versions.resolve(model_id, reference)
        kept = self._versions.prepare(model_id, version)
        with self._database.writing() as session:
            attempt = want_version(session, model_id, version)
        progress = self._wait(model_id, version, attempt, on_progress)
        if progress.verdict is Verdict.REFUSED:
            with self._database.writing() as session:
                release_version(session, model_id, version)
        return Prepared(model_id, version, kept.digest, attempt, progress)

    def _wait(
        self, model_id: str, version: str, attempt: int, on_progress: Callable[[Progress], None] | None
    ) -> Progress:
        waiting = Waiting()
        while True:
            with self._database.reading() as session:
                live = live_replicas(session)
            progress = judge_preparation(live, model_id, version, attempt, waiting.look(live), self._patience)
            if on_progress is not None:
                on_progress(progress)
            if progress.verdict is not Verdict.WAITING:
                return progress
            time.sleep(self._poll)
