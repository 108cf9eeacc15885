"""The shipper: what the HTTP processes recorded is in the database, once, and counted once, whatever happens."""

import functools
import multiprocessing
import os
import random
import signal
import threading
import time
from contextlib import closing
from hashlib import blake2b
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import text

from benchmarks.kills.spool import kill_on
from benchmarks.kills.verdict import Verdict
from control_plane.storage.setup import create_database
from serving.ids import time_of
from serving.recorder import PredictionRecord
from serving.shipper import Shipper, run_shipper, stream
from serving.shipper.durability import Durability
from serving.shipper.kinds import Predictions
from serving.shipper.shipping import QUIET_TICK, TICK
from serving.spool import SpoolWriter, StreamFolder, framed, kept_source, read_frames, spool_state
from serving.store import Database, open_database
from serving.store.predictions import read_payloads
from serving.store.rollups import RESOLUTIONS
from tests.predictions import a_payload, a_request, record_all
from tests.processes import PYTHON, ROOT, running, wait_until

SOURCE = "here:8000"
_forkserver = multiprocessing.get_context("forkserver")


def query(database: Database, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a statement."""
    with database.reading() as session:
        return [tuple(row) for row in session.connection().execute(text(sql))]


def stored_units(database: Database) -> list[str]:
    """Who asked, of every stored row, in the order of the key."""
    return [unit for (unit,) in query(database, "SELECT unit FROM prediction ORDER BY id, row")]


def counted(database: Database) -> dict[int, tuple[int, int]]:
    """Requests and rows as each resolution of the roll-ups has them."""
    rows = query(database, "SELECT resolution, sum(n), sum(rows) FROM rollup GROUP BY resolution")
    return {resolution: (int(n), int(carried)) for resolution, n, carried in rows}


def all_say(requests: int, rows: int) -> dict[int, tuple[int, int]]:
    """What `counted` is when every resolution has that many."""
    return dict.fromkeys(RESOLUTIONS, (requests, rows))


def ship(database: Database, spool: Path) -> None:
    """Everything that waits."""
    Shipper(database, spool, SOURCE).drain(30)


def segment_of(spool: Path, number: int = 1, stream: str = "predictions") -> Path:
    """The file of a segment of the first HTTP process."""
    return StreamFolder(spool / "api-0" / stream).segment(number)


def losses(database: Database) -> tuple[int, int, int]:
    """Bytes torn, records refused, records repeated."""
    ((torn, dropped, repeated),) = query(database, "SELECT sum(torn), sum(dropped), sum(repeated) FROM spool_position")
    return int(torn), int(dropped), int(repeated)


def a_key(text_of_client: str) -> bytes:
    """As the endpoint makes one."""
    return blake2b(f"flights\0{text_of_client}".encode(), digest_size=16).digest()


def test_every_fact_of_a_request_arrives(database: Database, tmp_path: Path) -> None:
    """Reports and experiments would be computed from something else than what was answered."""
    answered = a_request(arm="b", rows=[(1.0, None, 0.8), (None, "late", None)], latency_us=2_500_000_000)
    failed = a_request(status=500, unit=None, rows=[])
    record_all(tmp_path / "api-0", [answered, failed])
    ship(database, tmp_path)
    columns = "row, model_id, version, arm, role, unit, arrived_us, event_us, latency_us, status, value, label, score"
    fixed = ("flights", "3", "b", "answer", "ada", answered.arrived_us, answered.event_us, 2_500_000_000, 200)
    assert query(database, f"SELECT {columns} FROM prediction ORDER BY id, row") == [
        (0, *fixed, 1.0, None, 0.8),
        (1, *fixed, None, "late", None),
        (0, "flights", "3", None, "answer", None, failed.arrived_us, failed.event_us, 1500, 500, None, None, None),
    ]
    assert counted(database) == all_say(requests=2, rows=2)
    assert query(database, "SELECT DISTINCT arm, status, n, rows FROM rollup ORDER BY status") == [
        ("b", 200, 1, 2),
        ("", 500, 1, 0),
    ]


def test_payloads_come_back_as_they_went(database: Database, tmp_path: Path) -> None:
    """Drift and replay would see other features than the model did."""
    payloads = [a_payload(version=str(k % 2), features=bytes([k % 256] * 40)) for k in range(1300)]
    record_all(tmp_path / "api-0", [], payloads)
    ship(database, tmp_path)
    with database.reading() as session:
        found = list(read_payloads(session, "flights", 0, time.time() + 60))
        found.sort(key=lambda each: each.id)
        assert list(map(msgspec.structs.astuple, found)) == list(map(msgspec.structs.astuple, payloads))
        some = read_payloads(session, "flights", 0, time_of(payloads[700].id) / 1000, version="1")
        assert {each.version for each in some} <= {"1"}
    assert query(database, "SELECT count(*) FROM payload_chunk WHERE n > 512") == [(0,)]


def test_reading_the_same_again_changes_nothing(database: Database, tmp_path: Path) -> None:
    """A position that was lost with a power cut, or a copied spool, would count every request twice."""
    record_all(tmp_path / "api-0", [a_request(rows=[(1.0, None, 0.8)] * 3) for _ in range(40)], [a_payload()])
    ship(database, tmp_path)
    with database.writing() as session:
        session.connection().execute(text('UPDATE spool_position SET "offset" = 0'))
    record_all(tmp_path / "api-0", [a_request()])
    ship(database, tmp_path)
    assert counted(database) == all_say(requests=41, rows=121)
    assert query(database, "SELECT count(*) FROM prediction") == [(121,)]
    assert losses(database) == (0, 0, 40)


def test_a_renaming_of_the_host_ships_nothing_twice(database: Database, tmp_path: Path) -> None:
    """Each restart of a container, which gets a name of its own, would store the payloads that wait once more."""
    for host, count in (("old:8000", 7), ("new:8000", 5)):
        record_all(tmp_path / "api-0", [a_request() for _ in range(count)], [a_payload() for _ in range(count)])
        Shipper(database, tmp_path, kept_source(tmp_path, host)).drain(30)
    assert counted(database) == all_say(requests=12, rows=12)
    assert query(database, "SELECT sum(n) FROM payload_chunk") == [(12,)]
    assert losses(database) == (0, 0, 0)
    assert query(database, "SELECT count(*) FROM spool_position") == [(2,)]


def test_of_two_shippers_on_one_spool_one_stores(database: Database, database_url: str, tmp_path: Path) -> None:
    """While a data plane is replaced two of them run, and everything would be counted twice."""
    record_all(tmp_path / "api-0", [a_request() for _ in range(20)])
    other = open_database(database_url, 5)
    folder = StreamFolder(tmp_path / "api-0" / "predictions")
    first, second = Predictions(folder, SOURCE), Predictions(folder, SOURCE)
    assert first.look(database, patient=False)
    assert second.look(other, patient=False)
    first.ship(database, Durability(database))
    second.ship(other, Durability(other))
    assert not second.look(other, patient=False)
    assert counted(database) == all_say(requests=20, rows=20)
    assert losses(database) == (0, 0, 0)  # it did not even try
    other.close()


def test_a_client_key_has_one_request_wherever_it_was_repeated(database: Database, tmp_path: Path) -> None:
    """A client that asks again at another replica would count twice; or one whose first try failed, not at all."""
    key, failed_first = a_key("order-7"), a_key("order-8")
    record_all(
        tmp_path / "api-0",
        [
            a_request(client_key=failed_first, status=500, rows=[], unit="failed"),
            a_request(client_key=key, body_digest=a_key("body"), unit="first", rows=[(1.0, None, 0.8)] * 2),
            a_request(client_key=key, unit="again"),
        ],
    )
    ship(database, tmp_path)
    record_all(
        tmp_path / "api-1",
        [
            a_request(client_key=key, unit="elsewhere", rows=[(1.0, None, 0.8)] * 3),
            a_request(client_key=failed_first, unit="succeeded"),
        ],
    )
    ship(database, tmp_path)
    assert stored_units(database) == ["failed", "first", "first", "succeeded"]
    assert counted(database) == all_say(requests=3, rows=3)
    assert losses(database)[2] == 2
    assert query(database, "SELECT count(*) FROM prediction_alias a JOIN prediction p ON p.id = a.id") == [(3,)]


def test_a_request_larger_than_a_transaction_is_stored_in_parts(database: Database, tmp_path: Path) -> None:
    """One client with many rows would hold the write lock while routes wait for it."""
    large = [(float(k), None, None) for k in range(4000)]
    record_all(tmp_path / "api-0", [a_request(), a_request(rows=large, client_key=a_key("x")), a_request()])
    stream = Predictions(StreamFolder(tmp_path / "api-0" / "predictions"), SOURCE)
    seen = []
    while stream.look(database, patient=False):
        stream.ship(database, Durability(database))
        seen += query(database, "SELECT count(*) FROM prediction")
        assert counted(database)[5][0] == (2 if len(seen) < 3 else 3)
    assert seen == [(1500,), (3000,), (4002,)]
    assert query(database, "SELECT value FROM prediction ORDER BY id, row")[1:-1] == [(each[0],) for each in large]
    assert counted(database) == all_say(requests=3, rows=4002)


def test_damage_costs_what_is_damaged(database: Database, tmp_path: Path) -> None:
    """Everything behind a bad sector would never be stored."""
    record_all(tmp_path / "api-0", [a_request(unit=f"user-{k}") for k in range(6)], per_tick=1)
    path = segment_of(tmp_path)
    frames = read_frames(path, 0).frames
    flat = bytearray(path.read_bytes())
    flat[frames[2].start + 20] ^= 4
    path.write_bytes(bytes(flat[: frames[4].start] + b"garbage" + flat[frames[4].start : -3]))
    record_all(tmp_path / "api-0", [a_request(unit="later")])
    ship(database, tmp_path)
    assert stored_units(database) == ["user-0", "user-1", "user-3", "user-4", "later"]
    sizes = [frame.end - frame.start for frame in frames]
    assert losses(database) == (sizes[2] + len(b"garbage") + sizes[5] - 3, 0, 0)
    assert [each.name for each in path.parent.glob("*.bad")] == ["000000000001.bad"]
    assert spool_state(tmp_path).waiting_bytes == 0


def test_what_is_being_written_is_waited_for(database: Database, tmp_path: Path) -> None:
    """A request that is on its way to the disk would be taken for a torn one."""
    folder = StreamFolder(tmp_path / "api-0" / "predictions")
    writer = SpoolWriter(folder, 1 << 20, lambda: None)
    shipper = Shipper(database, tmp_path, SOURCE)
    assert writer.append(msgspec.msgpack.encode([a_request(unit="whole")]), 1)
    flat = b"".join(framed(msgspec.msgpack.encode([a_request(unit="in two pieces")])))
    with folder.segment(1).open("ab", buffering=0) as file:
        file.write(flat[:30])
        shipper.drain(5)
        assert stored_units(database) == ["whole"]
        file.write(flat[30:])
    shipper.drain(5)
    assert stored_units(database) == ["whole", "in two pieces"]
    writer.close()
    writer.sync()


def test_a_process_that_is_being_replaced_writes_on(database: Database, tmp_path: Path) -> None:
    """What the old HTTP process answers while it drains would be passed by, since its successor has begun."""
    folder = StreamFolder(tmp_path / "api-0" / "predictions")
    old, new = (SpoolWriter(folder, 1 << 20, lambda: None) for _ in range(2))
    shipper = Shipper(database, tmp_path, SOURCE)
    for writer, unit in ((old, "before"), (new, "successor"), (old, "drained")):
        assert writer.append(msgspec.msgpack.encode([a_request(unit=unit)]), 1)
        shipper.drain(5)
    for writer in (old, new):
        writer.close()
        writer.sync()
    shipper.drain(5)
    assert stored_units(database) == ["before", "successor", "drained"]


def test_what_the_database_refuses_is_kept_aside(database: Database, tmp_path: Path) -> None:
    """One odd request would hold up everything behind it, for ever."""
    odd = a_request(unit="odd\0one") if database.file is None else a_request(event_us=2**63)
    requests = [*(a_request(unit=f"user-{k}") for k in range(50)), odd, a_request(unit="last")]
    record_all(tmp_path / "api-0", requests)
    ship(database, tmp_path)
    assert len(stored_units(database)) == 51
    assert counted(database) == all_say(requests=51, rows=51)
    assert losses(database) == (0, 1, 0)
    (aside,) = segment_of(tmp_path).parent.glob("*.bad")
    (frame,) = read_frames(aside, 0).frames
    assert msgspec.msgpack.decode(frame.body, type=list[PredictionRecord]) == [odd]


def test_what_nobody_can_read_is_kept_aside(database: Database, tmp_path: Path) -> None:
    """A record of another release would end the shipping."""
    writer = SpoolWriter(StreamFolder(tmp_path / "api-0" / "predictions"), 1 << 20, lambda: None)
    for records in ([a_request()], ["from the future"], [a_request()]):
        assert writer.append(msgspec.msgpack.encode(records), 1)
    ship(database, tmp_path)
    assert counted(database) == all_say(requests=2, rows=2)
    assert losses(database) == (0, 1, 0)
    writer.close()
    writer.sync()


def test_stored_segments_go_and_the_newest_stays(database: Database, tmp_path: Path) -> None:
    """The disk would fill with what is stored; or numbers would begin anew, and be taken for stored."""
    for k in range(4):
        record_all(tmp_path / "api-0", [a_request(unit=f"user-{k}")])
    ship(database, tmp_path)
    ship(database, tmp_path)  # the last step's segment goes with the next look
    assert StreamFolder(tmp_path / "api-0" / "predictions").segments() == [4]
    record_all(tmp_path / "api-0", [a_request(unit="user-4")])
    ship(database, tmp_path)
    assert stored_units(database) == [f"user-{k}" for k in range(5)]
    with database.writing() as session:
        session.connection().execute(text("UPDATE spool_position SET segment = 99"))
    ship(database, tmp_path)
    assert StreamFolder(tmp_path / "api-0" / "predictions").segments()[-1] == 5


def test_a_folder_that_was_emptied_by_hand_is_stored_again(database: Database, tmp_path: Path) -> None:
    """After somebody made room on a full disk nothing would ever be stored any more."""
    record_all(tmp_path / "api-0", [a_request(unit="before") for _ in range(30)])
    ship(database, tmp_path)
    segment_of(tmp_path).unlink()
    record_all(tmp_path / "api-0", [a_request(unit="after")])
    ship(database, tmp_path)
    assert stored_units(database)[-1] == "after"


def test_several_spools_are_stored_oldest_first(database: Database, tmp_path: Path) -> None:
    """Rows out of order make the log several times slower, and old ones would wait for ever behind new ones."""
    requests = [a_request() for _ in range(9000)]
    for slot in range(3):  # the third HTTP process is no more; its spool is
        record_all(tmp_path / f"api-{slot}", requests[slot * 3000 : (slot + 1) * 3000], per_tick=500)
    shipper = Shipper(database, tmp_path, SOURCE)
    heads: list[int] = []

    def after_each(_seconds: float) -> bool:
        heads.extend(int(each) for (each,) in query(database, "SELECT max(arrived_us) FROM prediction"))
        return False

    shipper._store_all(after_each, patient=False)
    assert heads == sorted(heads)
    assert heads[1] == requests[2999].arrived_us
    assert counted(database) == all_say(requests=9000, rows=9000)


class Running:
    """The real process."""

    def __init__(self, url: str, spool: Path) -> None:
        self.process = _forkserver.Process(target=run_shipper, args=(url, 5.0, spool, SOURCE, "info"))
        self.process.start()

    def __enter__(self) -> BaseProcess:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join(30)


def test_the_process_stores_at_once_and_takes_the_last_along(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """After a clean stop predictions would lie on a disk that may never be started from again."""
    with Running(database_url, tmp_path) as process:
        record_all(tmp_path / "api-0", [a_request() for _ in range(10)])
        wait_until(lambda: counted(database) == all_say(requests=10, rows=10), "the first to be stored")
        record_all(tmp_path / "api-0", [a_request() for _ in range(3000)], [a_payload()])
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join(10)
        assert process.exitcode == 0
    assert counted(database) == all_say(requests=3010, rows=3010)
    assert query(database, "SELECT sum(n) FROM payload_chunk") == [(1,)]
    assert spool_state(tmp_path).waiting_bytes == 0


def test_the_process_waits_for_a_database_that_is_not_there(tmp_path: Path) -> None:
    """A data plane that starts before its database would lose what it answers until then, or fill its log."""
    url, spool, log = f"sqlite:///{tmp_path / 'switchyard.db'}", tmp_path / "spool", tmp_path / "shipper.log"
    record_all(spool / "api-0", [a_request() for _ in range(10)])
    arguments = f"{url!r}, 5.0, Path({str(spool)!r}), {SOURCE!r}, 'info'"
    work = f"from pathlib import Path; from serving.shipper import run_shipper; run_shipper({arguments})"
    with running([PYTHON, "-c", work], log=log, cwd=ROOT):
        wait_until(lambda: "they cannot be stored" in log.read_text(), "the log to say so")
        assert spool_state(spool).waiting_bytes > 0
        create_database(url, 5)
        wait_until(lambda: "stored again" in log.read_text(), "the log to say that it is over")
    assert log.read_text().count("they cannot be stored") == 1
    with closing(open_database(url, 5)) as database:
        assert counted(database) == all_say(requests=10, rows=10)


def _start_and_be_killed(url: str, spool: Path, pids: Any) -> None:
    process = _forkserver.Process(target=run_shipper, args=(url, 5.0, spool, SOURCE, "error"))
    process.start()
    pids.send(process.pid)
    signal.pause()


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """A killed data plane would leave shippers behind, more with each start."""
    ours, theirs = multiprocessing.Pipe()
    parent = multiprocessing.get_context("spawn").Process(
        target=_start_and_be_killed, args=(f"sqlite:///{tmp_path / 'none.db'}", tmp_path, theirs)
    )
    parent.start()
    pid = ours.recv()
    parent.kill()
    parent.join()
    wait_until(functools.partial(_is_gone, pid), "the shipper to end")


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state == "Z"


def _write_routes_until(url: str, stop: Any, result: Any) -> None:
    database = open_database(url, 10)
    took: list[float] = []
    while not stop.wait(0.015):
        began = time.perf_counter()
        with database.writing() as session:
            session.connection().execute(text("UPDATE route_generation SET value = value + 1"))
        took.append(time.perf_counter() - began)
    result.send(took)


def test_a_route_is_written_in_time_while_a_backlog_is_stored(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """A rollback would wait for the prediction log just when there is most of it."""
    record_all(tmp_path / "api-0", [a_request() for _ in range(15_000)], per_tick=50)
    ours, theirs = _forkserver.Pipe(duplex=False)
    stop = _forkserver.Event()
    writer = _forkserver.Process(target=_write_routes_until, args=(database_url, stop, theirs))
    writer.start()
    before = query(database, "SELECT value FROM route_generation")
    wait_until(lambda: query(database, "SELECT value FROM route_generation") != before, "routes to be written")
    shipper = Shipper(database, tmp_path, SOURCE)
    while spool_state(tmp_path).waiting_bytes:
        shipper._store_all(_slept)
    stop.set()
    took = ours.recv()
    writer.join()
    assert counted(database) == all_say(requests=15_000, rows=15_000)
    assert np.quantile(took, 0.99) < 0.25


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def test_kills_lose_nothing_and_count_nothing_twice(database_url: str) -> None:
    """What was answered would be missing from the log, or stand in it twice, after the first crash."""
    verdict = Verdict(0, "kills")
    rng = random.Random(20130401)
    kill_on(database_url, verdict, rng, 20, "here")
    assert verdict.problems == []
    facts = dict(verdict.figures)
    assert int(facts["here: acknowledged, of these lost"].split(",")[0]) > 100


def test_who_always_has_more_keeps_nobody_waiting(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payloads, and what another process has answered, would wait for as long as one process is busy."""
    monkeypatch.setattr("serving.shipper.shipping._ROUND_SECONDS", 0.0)
    monkeypatch.setattr(Predictions, "most", 10)
    shipper = Shipper(database, tmp_path, SOURCE)
    record_all(tmp_path / "api-1", [a_request(unit="calm")], [a_payload(features=bytes(400)) for _ in range(400)])
    record_all(tmp_path / "api-0", [a_request(unit="busy") for _ in range(300)], per_tick=10)
    shipper._store_all(lambda _: False)
    assert stored_units(database) == ["calm"]
    shipper._store_all(lambda _: False)
    record_all(tmp_path / "api-1", [a_request(unit="calm")])
    for _ in range(3):
        shipper._store_all(lambda _: False)
    assert query(database, "SELECT sum(n) FROM payload_chunk") == [(400,)]
    assert 10 < len(stored_units(database)) < 100
    Shipper(database, tmp_path, SOURCE).drain(30)
    assert counted(database) == all_say(requests=302, rows=302)


def test_what_has_waited_long_is_not_read_at_low_priority(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alerts would come late for as long as requests keep all cores busy."""
    readers: list[str] = []

    def read(path: Path, offset: int) -> Any:
        readers.append(threading.current_thread().name)
        return read_frames(path, offset)

    monkeypatch.setattr(stream, "read_frames", read)
    monkeypatch.setattr("serving.shipper.shipping._ROUND_SECONDS", 60.0)
    monkeypatch.setattr(Predictions, "most", 10)
    long_ago = int((time.time() - 60) * 1000)
    record_all(tmp_path / "api-0", [a_request(id=_id_of(long_ago, k)) for k in range(30)], per_tick=10)
    record_all(tmp_path / "api-0", [a_request() for _ in range(30)], per_tick=10)
    shipper = Shipper(database, tmp_path, SOURCE)
    shipper._store_all(lambda _: False)
    assert len(stored_units(database)) == 60
    # What waits is known when it has been read, so the first is read at low priority, and one too many at normal.
    low, main = "low-priority_0", "MainThread"
    assert readers[:4] == [low, main, main, main]
    assert readers[-2:] == [low, low]


def _id_of(moment: int, number: int) -> bytes:
    return moment.to_bytes(6, "big") + number.to_bytes(10, "big")


def test_a_quiet_shipper_looks_less_often(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle data plane would spend a percent of a core on looking at folders where nothing is."""
    monkeypatch.setattr("serving.shipper.shipping._QUIET_AFTER", 0.0)
    slept: list[float] = []
    came = [a_request()]

    def sleep(seconds: float) -> bool:
        slept.append(seconds)
        if len(slept) == 2:
            record_all(tmp_path / "api-0", came)
            monkeypatch.setattr("serving.shipper.shipping._QUIET_AFTER", 60.0)
        return len(slept) == 6

    Shipper(database, tmp_path, SOURCE).run(sleep)
    assert slept[:2] == [QUIET_TICK, QUIET_TICK]
    assert slept[-1] == TICK
    assert counted(database) == all_say(requests=1, rows=1)
