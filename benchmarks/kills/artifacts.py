"""Item 4: processes are killed while they keep and discard artifacts. What is listed is whole, always."""

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.kills.verdict import Verdict
from benchmarks.kills.victims import FAILED, Message, Victim, ended_afterwards, read_until
from benchmarks.waiting import NotInTime
from serving.artifacts import ArtifactStore
from serving.errors import ArtifactError

_MOMENT = 0.08
_GUARD = 60.0
# Folders that all processes keep again and again: the same bytes, hence the same digest, from several sides at once.
_COMMON = 10
_SHARE_COMMON, _SHARE_DISCARDED = 0.3, 0.3
_KEPT, _DISCARDING, _DISCARDED = "kept", "discarding", "discarded"


def kill_puts(verdict: Verdict, rng: random.Random, kills: int) -> None:
    """Two processes at a time on one store; a random one is killed at a random moment and replaced."""
    with tempfile.TemporaryDirectory(prefix="switchyard-") as folder:
        store = ArtifactStore(Path(folder))
        watch = _Watch(verdict, store)
        with ended_afterwards([_keeper(folder, rng), _keeper(folder, rng)]) as crew:
            for _ in range(kills):
                _wait_for_life(crew, watch)
                watch.look_for(rng.uniform(0, _MOMENT))
                victim = crew.pop(rng.randrange(len(crew)))
                watch.heed_all(victim.kill())
                watch.look()
                crew.append(_keeper(folder, rng))
            for each in crew:
                watch.heed_all(each.kill())
            crew.clear()
        verdict.figure("kills", kills + 2)
        watch.judge()


def keep_until_killed(folder: str, seed: int, connection: Connection) -> None:
    """Keep one folder after the other, discard some of those that nobody else has, and say so."""
    store, rng, own = ArtifactStore(Path(folder)), random.Random(seed), list[str]()
    while True:
        is_common = rng.random() < _SHARE_COMMON
        contents = rng.randrange(_COMMON) if is_common else rng.getrandbits(64)
        digest = store.put(partial(fill, contents)).digest
        connection.send((_KEPT, digest))
        if not is_common:
            own.append(digest)
        if own and rng.random() < _SHARE_DISCARDED:
            gone = own.pop(rng.randrange(len(own)))
            connection.send((_DISCARDING, gone))
            store.discard(gone)
            connection.send((_DISCARDED, gone))


def fill(contents: int, folder: Path) -> None:
    """Files as a model has them: some small ones, one large, one in a folder below. The same number, the same bytes."""
    rng = random.Random(contents)
    for name in ("MLmodel", "conda.yaml", "metadata/input_example.json", "model.skops"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1, 1 << 20 if name == "model.skops" else 1 << 12)))


def _keeper(folder: str, rng: random.Random) -> Victim:
    return Victim(keep_until_killed, folder, rng.getrandbits(32))


def _wait_for_life(crew: Sequence[Victim], watch: "_Watch") -> None:
    if not read_until(crew, lambda _, message: watch.heed(message) == _KEPT, _GUARD):
        raise NotInTime("a folder to be kept", _GUARD)


@dataclass
class _Watch:
    """Looks at the store as a reader does, all the time, and compares it with what the processes said."""

    verdict: Verdict
    store: ArtifactStore
    kept: set[str] = field(default_factory=set)  # said to be kept, and not to be discarded
    seen_whole: set[str] = field(default_factory=set)
    halves: dict[str, str] = field(default_factory=dict)  # ever seen listed and not whole -> what was wrong
    discarded: int = 0
    looks: int = 0

    def look_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()

    def look(self) -> None:
        """Everything that turned up since the last look must be whole the moment it is listed.

        Sweeps too, as housekeeping does beside those who work: what is under way is not for it to take.
        """
        self.looks += 1
        self.verdict.require(self.store.sweep() == 0, "the sweep took a copy that was under way")
        for digest in set(self.store.digests()) - self.seen_whole:
            if self._is_whole(digest):
                self.seen_whole.add(digest)

    def heed_all(self, messages: Sequence[Message]) -> None:
        for each in messages:
            self.heed(each)

    def heed(self, message: Message) -> str:
        word, fact = message
        if word == _KEPT:
            self.kept.add(fact)
        elif word == _DISCARDING:
            self.kept.discard(fact)
        elif word == _DISCARDED:
            self.discarded += 1
            self.verdict.require(self.store.find(fact) is None, f"{fact[:12]} can be found after it was discarded")
        elif word == FAILED:
            self.verdict.problems.append(f"a keeper failed: {fact}")
        return str(word)

    def judge(self) -> None:
        """Nobody works on the store any more."""
        listed = self.store.digests()
        broken = [each for each in listed if not self._is_whole(each)]
        self.verdict.problems += [
            f"{digest[:12]} was listed and not whole: {why}" for digest, why in self.halves.items()
        ]
        lost = self.kept - set(listed)
        self.verdict.require(not lost, f"{len(lost)} folders that were said to be kept are not there")
        incoming = self.store.root / "incoming"
        left = len(list(incoming.iterdir()))
        swept = self.store.sweep(older_than=0)
        remaining = len(list(incoming.iterdir()))
        self.verdict.require(remaining == 0, f"{remaining} of {left} half-made copies are there after the sweep")
        still = [each for each in listed if not self._is_whole(each)]
        self.verdict.require(len(still) == len(broken), "the sweep damaged kept folders")
        self.verdict.figure("folders listed in the end, of these not whole", f"{len(listed)}, {len(broken)}")
        self.verdict.figure("said to be kept, of these lost", f"{len(self.kept)}, {len(lost)}")
        self.verdict.figure("said to be discarded", self.discarded)
        self.verdict.figure("looks of a reader meanwhile", self.looks)
        self.verdict.figure("half-made copies left by the kills, of these swept", f"{left}, {swept}")

    def _is_whole(self, digest: str) -> bool:
        """Whether every byte is as recorded; what is not, and is still listed, is a problem."""
        try:
            self.store.verify(digest)
        except ArtifactError as error:
            if digest in self.store.digests():
                self.halves[digest] = error.detail
            return False
        return True
