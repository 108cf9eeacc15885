"""Item 6: HTTP processes and shippers are killed. What was acknowledged is in the database, once, and counted once."""

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import text

from benchmarks.kills.databases import each_database, integrity
from benchmarks.kills.verdict import Verdict
from benchmarks.kills.victims import FAILED, Message, Victim, ended_afterwards
from control_plane.storage.setup import create_database
from serving.contracts import Role
from serving.ids import PredictionIds
from serving.recorder import Payload, PredictionRecord, Recorder
from serving.shipper import Shipper, run_shipper
from serving.spool import spool_state
from serving.store import Database, open_database
from serving.store.payloads import open_chunk
from serving.store.rollups import RESOLUTIONS

MODEL = "killed"
_TIMEOUT = 20.0
_MOMENT = 0.3
_GUARD = 60.0
_SLOTS = 2
_SPOOL_BYTES = 1 << 30
_KEYS = 400
_SHARE_WITH_KEY, _SHARE_FAILED, _SHARE_LARGE = 0.1, 0.05, 0.002
_LARGE = 2500  # rows: more than one transaction takes
_ACKNOWLEDGED = 32  # bytes: id, client key or zeros
_NO_KEY = bytes(16)
_A_TICK = 32  # requests recorded at once, flat out
_MOST_WAITING, _PAUSE = 64 << 20, 0.02  # bytes, seconds


def kill_spools(verdict: Verdict, rng: random.Random, kills: int) -> None:
    """On SQLite, and on PostgreSQL where there is one."""
    for name, url in each_database():
        kill_on(url, verdict, rng, kills, name)


def kill_on(url: str, verdict: Verdict, rng: random.Random, kills: int, name: str) -> None:
    """Two HTTP processes that record and two shippers on the same spools; a random one is killed and replaced."""
    create_database(url, _TIMEOUT)
    with (
        tempfile.TemporaryDirectory(prefix="switchyard-") as folder,
        closing(open_database(url, _TIMEOUT)) as database,
    ):
        trial = _Trial(verdict, Path(folder), url, rng, name)
        trial.run(kills)
        waited = trial.drain(database)
        verdict.figure(f"{name}: to store the rest", f"{waited:.1f} s")
        trial.judge(database)


def record_until_killed(folder: Path, slot: int, seed: int, _connection: Connection) -> None:
    """Record requests as an HTTP process does, and note each that was acknowledged in a file."""
    asyncio.run(_record(folder, slot, seed))


def record_flat_out(folder: Path, slot: int, _connection: Connection) -> None:
    """Record more than anybody could ship, as long as 64 MB or less wait: it shall not fill the disk."""
    asyncio.run(_record_flat_out(folder, slot))


def ship_until_killed(url: str, folder: Path, _connection: Connection) -> None:
    """The product's own process."""
    run_shipper(url, _TIMEOUT, folder / "spool", "here:8000", "critical")


async def _record(folder: Path, slot: int, seed: int) -> None:
    rng, ids = random.Random(seed), PredictionIds()
    recorder = Recorder(folder / "spool" / f"api-{slot}", max_bytes=_SPOOL_BYTES, payloads=True, on_dropped=_complain)
    acknowledged = os.open(folder / f"acknowledged-{slot}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    while True:
        noted = b""
        for _ in range(rng.randrange(1, 24)):
            record = _request(rng, ids())
            recorder.add(record, Payload(record.id, MODEL, "1", 1, 0, rng.randbytes(80), b"", 0, 1, bytes(8)))
            noted += record.id + (record.client_key or _NO_KEY)
        await recorder.durable()
        os.write(acknowledged, noted)
        await asyncio.sleep(rng.uniform(0, 0.01))


async def _record_flat_out(folder: Path, slot: int) -> None:
    rng, ids = random.Random(slot), PredictionIds()
    recorder = Recorder(folder / "spool" / f"api-{slot}", max_bytes=_SPOOL_BYTES, payloads=True, on_dropped=_complain)
    while True:
        if spool_state(folder / "spool").waiting_bytes > _MOST_WAITING:
            await asyncio.sleep(_PAUSE)
            continue
        for _ in range(_A_TICK):
            record = _request(rng, ids())
            recorder.add(record, Payload(record.id, MODEL, "1", 1, 0, rng.randbytes(80), b"", 0, 1, bytes(8)))
        await recorder.durable()
        await asyncio.sleep(0)


def _request(rng: random.Random, id: bytes) -> PredictionRecord:
    now = time.time_ns() // 1000
    failed = rng.random() < _SHARE_FAILED
    size = _LARGE if rng.random() < _SHARE_LARGE else rng.randrange(1, 4)
    key = None
    if not failed and rng.random() < _SHARE_WITH_KEY:
        key = blake2b(f"{MODEL}\0{rng.randrange(_KEYS)}".encode(), digest_size=16).digest()
    return PredictionRecord(
        id=id,
        client_key=key,
        body_digest=key,
        arrived_us=now,
        event_us=now,
        model_id=MODEL,
        version=rng.choice("12"),
        arm=None,
        role=Role.ANSWER.value,
        unit=f"user-{rng.randrange(1000)}",
        latency_us=rng.randrange(100, 100_000),
        status=500 if failed else 200,
        rows=[] if failed else [(rng.random(), None, 0.5)] * size,
    )


def _complain(stream: str, count: int) -> None:
    raise AssertionError(f"{count} {stream} were dropped")


class _Acknowledged(NamedTuple):
    id: bytes
    key: bytes


@dataclass
class _Trial:
    verdict: Verdict
    folder: Path
    url: str
    rng: random.Random
    name: str
    killed: Counter[str] = field(default_factory=Counter)

    def run(self, kills: int) -> None:
        roles = [("recording", slot) for slot in range(_SLOTS)] + [("shipping", slot) for slot in range(2)]
        with ended_afterwards([self._start(*role) for role in roles]) as crew:
            for _ in range(kills):
                # A kill in the midst of what they do: at any moment, not when something is done.
                time.sleep(self.rng.uniform(0, _MOMENT))
                place = self.rng.randrange(len(crew))
                self._kill(crew[place], roles[place][0])
                crew[place] = self._start(*roles[place])
            for victim, (role, _) in zip(crew, roles, strict=True):
                self._kill(victim, role)

    def _start(self, role: str, slot: int) -> Victim:
        if role == "shipping":
            return Victim(ship_until_killed, self.url, self.folder)
        return Victim(record_until_killed, self.folder, slot, self.rng.getrandbits(32))

    def _kill(self, victim: Victim, role: str) -> None:
        self.verdict.require(not victim.has_ended, f"{self.name}: a process that was {role} had ended by itself")
        self.killed[role] += 1
        self._heed(victim.kill())

    def _heed(self, messages: list[Message]) -> None:
        self.verdict.problems += [f"{self.name}: {fact}" for word, fact in messages if word == FAILED]

    def drain(self, database: Database) -> float:
        """Store what the killed left, and say how long that took."""
        began = time.monotonic()
        Shipper(database, self.folder / "spool", "here:8000").drain(_GUARD)
        left = spool_state(self.folder / "spool")
        self.verdict.require(left.waiting_bytes == 0, f"{self.name}: {left.waiting_bytes} bytes were left")
        return time.monotonic() - began

    def judge(self, database: Database) -> None:
        """Nobody writes any more."""
        stored = self._stored(database)
        acknowledged = list(self._acknowledged())
        with_key = [each for each in acknowledged if each.key != _NO_KEY]
        missing = [each for each in acknowledged if each.key == _NO_KEY and each.id not in stored]
        self.verdict.require(not missing, f"{self.name}: {len(missing)} acknowledged requests are not stored")
        self._judge_keys(database, with_key, stored)
        self._judge_counts(database, stored)
        if database.file is not None:
            self.verdict.require(integrity(database.file) == "ok", f"{self.name}: {integrity(database.file)}")
        killed = ", ".join(f"{count} {role}" for role, count in sorted(self.killed.items()))
        self.verdict.figure(f"{self.name}: killed", killed)
        self.verdict.figure(f"{self.name}: acknowledged, of these lost", f"{len(acknowledged)}, {len(missing)}")
        self.verdict.figure(f"{self.name}: requests stored", len(stored))

    def _judge_keys(self, database: Database, with_key: list[_Acknowledged], stored: Counter[bytes]) -> None:
        requests = Counter(each.key for each in with_key if each.id in stored)
        keys = {each.key for each in with_key}
        with database.reading() as session:
            found = session.connection().execute(text("SELECT client_key FROM prediction_alias"))
            known = {_bytes(row[0]) for row in found}
        twice = [key for key in keys if requests[key] > 1]
        self.verdict.require(not twice, f"{self.name}: {len(twice)} client keys have several requests in the log")
        lost = keys - known
        self.verdict.require(not lost, f"{self.name}: {len(lost)} client keys that were acknowledged have none")
        self.verdict.figure(f"{self.name}: requests with a client's key, keys", f"{len(with_key)}, {len(keys)}")

    def _judge_counts(self, database: Database, stored: Counter[bytes]) -> None:
        with database.reading() as session:
            connection = session.connection()
            answered = connection.execute(text("SELECT count(*) FROM prediction WHERE status = 200")).scalar_one()
            counted = {
                resolution: (int(n), int(rows))
                for resolution, n, rows in connection.execute(
                    text("SELECT resolution, sum(n), sum(rows) FROM rollup GROUP BY resolution")
                )
            }
            unowned = connection.execute(
                text("SELECT count(*) FROM prediction_alias WHERE id NOT IN (SELECT id FROM prediction)")
            ).scalar_one()
            payloads = [
                each.id
                for body in connection.execute(text("SELECT body FROM payload_chunk")).scalars()
                for each in open_chunk(bytes(body))
            ]
        expected = dict.fromkeys(RESOLUTIONS, (len(stored), answered))
        self.verdict.require(counted == expected, f"{self.name}: roll-ups say {counted}, rows say {expected}")
        self.verdict.require(unowned == 0, f"{self.name}: {unowned} client keys point to nothing")
        self.verdict.require(len(payloads) == len(set(payloads)), f"{self.name}: payloads are there twice")
        self.verdict.figure(f"{self.name}: rows, payloads", f"{stored.total()}, {len(payloads)}")

    def _stored(self, database: Database) -> Counter[bytes]:
        """Requests, with their number of rows."""
        with database.reading() as session:
            found = session.connection().execute(text("SELECT id, count(*) FROM prediction GROUP BY id"))
            return Counter({_bytes(row[0]): row[1] for row in found})

    def _acknowledged(self) -> Iterator[_Acknowledged]:
        for path in self.folder.glob("acknowledged-*"):
            noted = path.read_bytes()
            for at in range(0, len(noted) // _ACKNOWLEDGED * _ACKNOWLEDGED, _ACKNOWLEDGED):
                yield _Acknowledged(noted[at : at + 16], noted[at + 16 : at + 32])


def _bytes(id: object) -> bytes:
    return bytes(id) if isinstance(id, bytes | memoryview) else id.bytes  # type: ignore[attr-defined]  # a UUID
