"""Real workers over their real sockets: what they hold, what they answer, and how they end."""

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import psutil
import pytest

import serving.peer
from serving.artifacts import ArtifactStore
from serving.channel import Kind, Question, pack, version_key
from serving.contracts import Encoding
from serving.peer import GIVEN_UP_AFTER, Peer
from serving.worker import WorkerLoop
from tests.models import PILL, Zoo
from tests.processes import wait_until
from tests.worker_client import GUARD, Client, Digest, RunningWorker


@pytest.fixture
def worker(tmp_path: Path, store: ArtifactStore) -> Iterator[RunningWorker]:
    """A worker that is not started yet."""
    one = RunningWorker(tmp_path, store)
    yield one
    one.end()


@pytest.fixture
def client(worker: RunningWorker) -> Client:
    """Somebody connected to a worker that holds nothing."""
    return worker.start().connect()


def listed(*versions: tuple[str, str, str]) -> bytes:
    how = {"batch_size": 32, "timeout": 5.0, "warmup_requests": 1}
    return orjson.dumps(
        {"versions": [{"model_id": name, "version": version, "digest": digest, **how} for name, version, digest in versions]}
    )  # fmt: skip


def two(a: float, b: float = 1.0) -> Any:
    """One row of the models with columns a and b."""
    return np.array([[a, b]])


def test_a_worker_that_starts_is_whole_before_it_can_be_reached(worker: RunningWorker, digest: Digest) -> None:
    """After each crash the first requests would meet a worker that knows no model, and one bad version no worker at all."""
    good, broken = digest("unsigned"), digest("unpickling-raises")
    versions = [("bad", "1", broken), ("gone", "1", "0" * 64), ("flights", "1", good), ("flights", "2", good)]
    worker.versions_file.write_bytes(listed(*versions))
    client = worker.start().connect()
    assert set(client.holds) == {("flights", "1"), ("flights", "2")}
    assert client.holds["flights", "1"]["digest"] == good
    assert client.holds["flights", "1"]["engine"] == "sklearn"
    assert client.hello.generation == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"versions": [{"model_id": "m"}]}'])
def test_a_list_that_cannot_be_read_is_no_reason_not_to_start(worker: RunningWorker, content: bytes | None) -> None:
    """A half-written file would keep every worker down."""
    if content is not None:
        worker.versions_file.write_bytes(content)
    assert worker.start().connect().holds == {}


def test_a_version_can_be_loaded_asked_and_dropped(
    client: Client, worker: RunningWorker, zoo: Zoo, digest: Digest
) -> None:
    """Promotions would need a restart."""
    other = worker.connect()
    sample = zoo.get("logistic").sample
    report = client.load("flights", "3", digest("logistic"), warmup_requests=4)
    assert report["ok"] is True
    assert (report["held"]["version"], len(report["held"]["warmup_seconds"])) == ("3", 4)
    # All are told, and before the report: who acts on that may ask at once.
    assert set(client.take_holds()) == set(other.take_holds()) == {("flights", "3")}
    rows = sample.to_numpy()[:5]
    reply = other.ask("flights", "3", rows)
    assert reply.outcome is not None
    assert (reply.outcome.rows, reply.outcome.width, reply.outcome.encoding) == (5, 3, Encoding.FLOATS)
    assert np.allclose(reply.answers[:, 1:].sum(axis=1), 1.0)
    assert client.control(op="unload", model_id="flights", version="3") == {"ok": True, "held": None}
    assert other.take_holds() == {}
    failure = client.ask("flights", "3", rows).failure
    assert failure is not None
    assert failure["error"] == "VersionNotLoaded"


def test_what_cannot_be_loaded_is_reported_and_the_old_serves_on(client: Client, digest: Digest) -> None:
    """A broken version would take the champion along, or nobody would learn why it does not come."""
    assert client.load("m", "1", digest("unsigned"))["ok"]
    for name, reason in [("unpickling-raises", "no licence found"), ("missing-package", "pip install no-such-package")]:
        report = client.load("m", "1", digest(name))
        assert report["ok"] is False
        assert reason in report["reason"]
    assert "is not in" in client.load("m", "2", "0" * 64)["reason"]
    assert client.ask("m", "1", two(1.0)).failure is None


@pytest.mark.parametrize(
    "order", [{}, {"op": "explode"}, {"op": "load", "model_id": "m"}, {"op": "configure", "model_id": "m", "batch_size": "x"}]
)  # fmt: skip
def test_an_order_that_makes_no_sense_is_refused(client: Client, order: dict[str, Any]) -> None:
    """An agent of another version would end all workers."""
    report = client.control(**order)
    assert report["ok"] is False
    assert "cannot be understood" in report["reason"]


def test_what_waits_becomes_one_batch(client: Client, digest: Digest) -> None:
    """Each request would cost a call of its own, and throughput a tenth."""
    client.load("m", "1", digest("sleeps"), batch_size=16)
    client.send(b"".join(client.question("m", "1", two(0.3 if place == 0 else -1.0)) for place in range(40)))
    replies = client.replies(40)
    assert [reply.outcome.batch_rows for reply in replies if reply.outcome] == [16] * 32 + [8] * 8
    assert all(reply.outcome.compute >= 0.3 for reply in replies[:16] if reply.outcome)
    assert all(reply.outcome.queue >= 0.3 for reply in replies[16:] if reply.outcome)


def test_batch_size_can_be_changed_while_it_serves(client: Client, digest: Digest) -> None:
    """A new setting would count only after the next promotion."""
    client.load("m", "1", digest("sleeps"), batch_size=16)
    assert client.control(op="configure", model_id="m", batch_size=4, timeout=9.0) == {"ok": True, "held": None}
    client.send(b"".join(client.question("m", "1", two(-1.0)) for _ in range(8)))
    assert [reply.outcome.batch_rows for reply in client.replies(8) if reply.outcome] == [4] * 8
    one_request = client.ask("m", "1", np.repeat(two(0.1), 8, axis=0))
    assert one_request.outcome is not None
    assert one_request.outcome.compute >= 0.2  # two calls of a tenth


def test_two_versions_never_share_a_batch(client: Client, worker: RunningWorker, zoo: Zoo, digest: Digest) -> None:
    """Clients would be answered by the version they were not dealt to."""
    client.load("m", "1", digest("sleeps"))
    client.load("m", "2", digest("linear"))
    other = worker.connect()
    rows = zoo.get("linear").sample.to_numpy()
    for one in (client, other):
        questions = [
            one.question("m", "1", two(-1.0)) + one.question("m", "2", rows[place][None]) for place in range(60)
        ]
        one.send(b"".join(questions))
    answered = [one.replies(120) for one in (client, other)]
    whole = other.ask("m", "2", rows[:60])
    for replies in answered:
        assert np.allclose([reply.answers[0, 0] for reply in replies[1::2]], whole.answers[:, 0])
        assert len({reply.answers[0, 0] for reply in replies[::2]}) == 1


def test_one_poisoned_row_fails_alone_and_is_named(client: Client, worker: RunningWorker, digest: Digest) -> None:
    """One client's bad row would fail the requests of strangers."""
    client.load("m", "1", digest("raises"))
    other = worker.connect()
    client.send(b"".join(client.question("m", "1", two(float(place % 3))) for place in range(20)))
    other.send(other.question("m", "1", np.array([[0.0, 1.0], [1.0, 1.0], [PILL, 1.0], [2.0, 1.0]])))
    (bad,) = other.replies(1)
    assert bad.failure == {
        "error": "ModelError", "row": 2, "exception": "ArithmeticError", "problem": "it cannot bear that row",
    }  # fmt: skip
    assert all(reply.failure is None for reply in client.replies(20))


def test_an_answer_of_other_length_is_the_models_error(client: Client, digest: Digest) -> None:
    """Answers would be given to the wrong rows."""
    client.load("m", "1", digest("shrinks"))
    client.send(b"".join(client.question("m", "1", two(PILL if place == 3 else 1.0)) for place in range(8)))
    replies = client.replies(8)
    assert [place for place, reply in enumerate(replies) if reply.failure] == [3]
    assert replies[3].failure == {
        "error": "ModelError", "row": 0, "exception": "ValueError", "problem": "returned 0 rows for 1",
    }  # fmt: skip


def test_a_body_that_does_not_hold_what_it_says_fails_alone(client: Client, digest: Digest) -> None:
    """A fault in one HTTP process would give answers to the wrong rows in another."""
    client.load("m", "1", digest("unsigned"))
    key = version_key("m", "1", b'{"columns":["a","b"]}')
    deadline = time.monotonic() + GUARD

    def question(id: int, rows: int, cells: list[list[float]]) -> bytes:
        return Question(key, rows, Encoding.JSON, deadline, solo=False).pack(id, orjson.dumps(cells))

    client._ids = 103
    client.send(question(101, 1, [[1.0, 2.0]]) + question(102, 2, [[1.0, 2.0]]) + question(103, 1, [[1.0, 2.0]]))
    fine, lying, too = client.replies(3)
    assert fine.failure is too.failure is None
    assert lying.failure is not None
    assert lying.failure["problem"] == "1 rows came where 2 were announced"


def test_who_comes_too_late_costs_nothing(client: Client, digest: Digest) -> None:
    """Overloaded, a worker would compute only what nobody waits for any more."""
    client.load("m", "1", digest("sleeps"), batch_size=1)
    began = time.monotonic()
    client.send(client.question("m", "1", two(0.4)))
    client.send(b"".join(client.question("m", "1", two(0.4), seconds=0.1) for _ in range(20)))
    first, *late = client.replies(21)
    assert first.failure is None
    assert {reply.failure["error"] for reply in late if reply.failure} == {"DeadlineExceeded"}
    assert len([reply for reply in late if reply.failure]) == 20
    assert time.monotonic() - began < 2.0


def test_who_leaves_is_not_computed_for(client: Client, worker: RunningWorker, digest: Digest) -> None:
    """After the death of an HTTP process its requests would hold up those of the others."""
    client.load("m", "1", digest("sleeps"), batch_size=1)
    leaving = worker.connect()
    leaving.send(b"".join(leaving.question("m", "1", two(0.2)) for _ in range(50)))
    leaving.close()
    began = time.monotonic()
    assert client.ask("m", "1", two(-1.0)).failure is None
    assert time.monotonic() - began < 2.0


def test_a_solo_request_is_alone(client: Client, digest: Digest) -> None:
    """A request that ends its worker would take those along that are asked again with it."""
    client.load("m", "1", digest("sleeps"))
    questions = [client.question("m", "1", two(-1.0), solo=place in (2, 3)) for place in range(6)]
    client.send(b"".join(questions))
    assert [reply.outcome.batch_rows for reply in client.replies(6) if reply.outcome] == [4, 4, 1, 1, 4, 4]


def test_a_ping_is_answered_between_two_batches(client: Client, digest: Digest) -> None:
    """A worker that is merely busy would count as hung."""
    client.load("m", "1", digest("sleeps"), batch_size=1)
    client.send(b"".join(client.question("m", "1", two(0.1)) for _ in range(10)))
    began = time.monotonic()
    client.send(pack(Kind.PING, 7))
    client.take(Kind.PONG, 7)
    assert time.monotonic() - began < 0.6  # the ten batches take a second
    assert all(reply.failure is None for reply in client.replies(10))


def test_the_parent_sees_how_long_a_call_may_take(client: Client, worker: RunningWorker, digest: Digest) -> None:
    """A model that hangs would hold its worker for ever."""
    client.load("m", "1", digest("sleeps"), timeout=2.0)
    assert not worker.loop.overdue(0, time.monotonic() + 1000)
    client.send(client.question("m", "1", two(0.5)))
    wait_until(lambda: worker.loop.overdue(0, time.monotonic() + 8.0), "the call", 5)
    assert not worker.loop.overdue(0, time.monotonic() + 6.0)  # 2 s of the model and 5 s of grace
    client.replies(1)
    wait_until(lambda: not worker.loop.overdue(0, time.monotonic() + 1000), "the end of the call", 5)


def test_a_row_that_ends_the_process_ends_it_visibly(client: Client, worker: RunningWorker, digest: Digest) -> None:
    """Its requests could not be asked again elsewhere."""
    client.load("m", "1", digest("kills"))
    client.send(client.question("m", "1", two(PILL)))
    assert client.closed()
    assert worker.process is not None
    worker.process.join(GUARD)
    assert worker.process.exitcode == 9


def test_a_peer_that_talks_nonsense_is_dropped_alone(client: Client, worker: RunningWorker, digest: Digest) -> None:
    """One faulty HTTP process would take all others' answers along."""
    client.load("m", "1", digest("unsigned"))
    for nonsense in (
        b"\xff" * 64,
        pack(Kind.PREDICT, 1, b"short"),
        Question(version_key("m", "1"), 0, Encoding.FLOATS, time.monotonic() + 9, solo=False).pack(1, b""),
        Question(b"no version", 1, Encoding.FLOATS, time.monotonic() + 9, solo=False).pack(1, bytes(16)),
    ):
        stranger = worker.connect()
        stranger.send(nonsense)
        assert stranger.closed()
    assert client.ask("m", "1", two(1.0)).failure is None


def test_a_terminated_worker_answers_what_it_has(worker: RunningWorker, digest: Digest) -> None:
    """Each replacement of a worker would fail the requests that it holds."""
    client = worker.start().connect()
    client.load("m", "1", digest("sleeps"), batch_size=1)
    client.send(b"".join(client.question("m", "1", two(0.05)) for _ in range(10)))
    assert worker.process is not None
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGTERM)
    client.take(Kind.GOAWAY)
    assert all(reply.failure is None for reply in client.replies(10))
    assert worker.process.exitcode is None  # it waits until we let go
    client.close()
    worker.process.join(GUARD)
    assert worker.process.exitcode == 0


def test_a_worker_that_nobody_lets_go_of_ends_all_the_same(tmp_path: Path, store: ArtifactStore) -> None:
    """One stuck HTTP process would keep an old worker, and its memory, for ever."""
    worker = RunningWorker(tmp_path, store, drain_timeout=0.3).start()
    try:
        client = worker.connect()
        assert worker.process is not None
        worker.process.terminate()
        assert client.closed()
        worker.process.join(GUARD)
        assert worker.process.exitcode == 0
    finally:
        worker.end()


def test_loading_does_not_hold_up_predictions(client: Client, worker: RunningWorker, zoo: Zoo, digest: Digest) -> None:
    """Each promotion would be felt by every client."""
    client.load("m", "1", digest("logistic"))
    agent = worker.connect()
    row = zoo.get("logistic").sample.to_numpy()[:1]
    forest = digest("forest")
    agent._ids += 1
    load = {
        "op": "load",
        "model_id": "n",
        "version": "1",
        "digest": forest,
        "batch_size": 64,
        "timeout": 9.0,
        "warmup_requests": 20,
    }
    agent.send(pack(Kind.CONTROL, 1, orjson.dumps(load)) * 10)
    taken = []
    for _ in range(300):
        began = time.perf_counter()
        assert client.ask("m", "1", row).failure is None
        taken.append(time.perf_counter() - began)
    for _ in range(10):
        assert orjson.loads(agent.take(Kind.REPORT).payload)["ok"]
    assert np.percentile(taken, 99) < 0.15  # a guard against stalls, on a busy machine; the import alone is seconds


def test_json_rows_are_answered_with_json(client: Client, digest: Digest) -> None:
    """Generic models would not be served."""
    report = client.load("g", "1", digest("pyfunc"))
    assert report["held"]["kind"] == "generic"
    assert client.ask("g", "1", [["ada", 36.0], ["emmy", 53.0]]).answers == [
        {"said": "ada is 36", "older": 37.0},
        {"said": "emmy is 53", "older": 54.0},
    ]


def test_a_peer_that_stops_reading_is_not_read_either_until_it_has_caught_up() -> None:
    """A stuck HTTP process would fill the worker's memory; or a request of very many rows could not be answered."""
    ours, theirs = socket.socketpair()
    watched: list[int] = []
    peer = Peer(ours, watched.append)
    peer.send(bytes(20 * 2**20))
    assert peer.choked
    assert watched[-1] == selectors.EVENT_WRITE
    peer.send(b"more")  # nothing is lost
    assert time.monotonic() < peer.given_up_at <= time.monotonic() + GIVEN_UP_AFTER
    theirs.settimeout(GUARD)
    received = 0
    while received < 20 * 2**20 + 4:
        peer.flush()
        received += len(theirs.recv(2**20))
    peer.flush()
    assert watched[-1] == selectors.EVENT_READ
    theirs.close()
    ours.close()


def test_who_does_not_take_its_answers_loses_none_and_holds_up_nobody(
    client: Client, worker: RunningWorker, zoo: Zoo, digest: Digest
) -> None:
    """An HTTP process that stands still for a second would lose all its requests, or take everybody's worker along."""
    client.load("m", "1", digest("logistic"), batch_size=10_000)
    other = worker.connect()
    rows = np.repeat(zoo.get("logistic").sample.to_numpy()[:1], 50_000, axis=0)  # 1.2 MB of answers
    questions = b"".join(client.question("m", "1", rows) for _ in range(30))
    sender = threading.Thread(target=client.send, args=(questions,))  # it will not be taken at once
    sender.start()
    assert worker.process is not None
    process = psutil.Process(worker.process.pid)
    wait_until(
        lambda: process.status() == psutil.STATUS_SLEEPING and client.readable() > 100_000, "answers unread", GUARD
    )
    for _ in range(20):
        assert other.ask("m", "1", rows[:1]).failure is None
    assert process.memory_info().rss < 2**30
    assert all(reply.failure is None and len(reply.answers) == 50_000 for reply in client.replies(30))
    sender.join(GUARD)


def _impatiently(loop: WorkerLoop) -> None:
    """A worker's life that gives up a peer which reads nothing after half a second."""
    serving.peer.GIVEN_UP_AFTER = 0.5
    loop(None, "cpu", 0)


def test_who_takes_nothing_for_long_is_dropped_and_others_go_on(
    worker: RunningWorker, zoo: Zoo, digest: Digest
) -> None:
    """A hung HTTP process would keep its answers in the worker's memory for ever."""
    stuck = worker.start(_impatiently).connect()
    other = worker.connect()
    other.load("m", "1", digest("logistic"), batch_size=10_000)
    rows = np.repeat(zoo.get("logistic").sample.to_numpy()[:1], 50_000, axis=0)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stuck.send(b"".join(stuck.question("m", "1", rows) for _ in range(30)))
    assert stuck.closed()
    assert other.ask("m", "1", rows[:1]).failure is None


def test_a_frame_of_the_models_own_columns_needs_no_signature(client: Client, zoo: Zoo, digest: Digest) -> None:
    """Models that were logged without a signature would not be served."""
    client.load("m", "1", digest("unsigned"))
    frame: pd.DataFrame = zoo.get("unsigned").sample.head(3)
    assert client.ask("m", "1", frame.to_numpy()).failure is None
