"""Loads that hang, and loads that end their process, in real workers."""

import signal
import time
from pathlib import Path

import pytest

from serving.artifacts import ArtifactStore
from serving.channel import Kind
from serving.load_journal import Mark, journal_file, read_left_out
from tests.processes import wait_until
from tests.unit.test_worker import listed, two
from tests.worker_client import GUARD, Digest, RunningWorker


def ended(worker: RunningWorker) -> int | None:
    """Its exit code, once it has ended."""
    assert worker.process is not None
    worker.process.join(GUARD)
    return worker.process.exitcode


def test_a_load_that_hangs_ends_its_worker_and_nobodys_answer(
    tmp_path: Path, store: ArtifactStore, digest: Digest
) -> None:
    """One broken file would keep every later version from being loaded, or take the champion's answers along."""
    worker = RunningWorker(tmp_path, store, load_timeout=1.0).start()
    try:
        client, agent = worker.connect(), worker.connect()
        assert agent.load("m", "1", digest("sleeps"), warmup_requests=0)["ok"]
        client.send(b"".join(client.question("m", "1", two(0.05), seconds=GUARD) for _ in range(5)))
        report = agent.load("m", "2", digest("unpickling-hangs"))
        assert report["reason"].startswith("loading it took longer than 1 s")
        assert report["ended"] is True
        client.send(client.question("m", "1", two(0.2)))
        client.take(Kind.GOAWAY)
        assert all(reply.failure is None for reply in client.replies(6))
        client.close()
        agent.close()
        assert ended(worker) == 0
        assert worker.start().connect().load("n", "1", digest("unsigned"))["ok"]
    finally:
        worker.end()


def test_the_parent_sees_a_load_that_lets_nothing_else_in_its_process_go_on(
    tmp_path: Path, store: ArtifactStore, digest: Digest
) -> None:
    """A worker whose interpreter is held for ever would never end by itself, and its place stay empty."""
    worker = RunningWorker(tmp_path, store, load_timeout=0.5).start()
    try:
        client = worker.connect()
        client.ordered("m", "1", digest("unpickling-hangs-all"))
        wait_until(lambda: worker.loop.overdue(0, time.monotonic() + 5.5 + 0.6), "the load", GUARD)
        assert not worker.loop.overdue(0, time.monotonic() + 4)  # it has 5 s to end by itself
        wait_until(lambda: worker.loop.overdue(0, time.monotonic()), "its end overdue", GUARD)
        assert worker.process is not None
        worker.process.kill()
        assert ended(worker) == -signal.SIGKILL
    finally:
        worker.end()


@pytest.mark.parametrize("name", ["unpickling-kills", "unpickling-hangs"])
def test_what_ends_a_worker_at_its_start_is_left_out(
    tmp_path: Path, store: ArtifactStore, digest: Digest, name: str
) -> None:
    """One version that nobody even asks would keep every worker down for ever."""
    # Whose deadline has passed when its successor starts was killed for that, once is enough then: not here.
    worker = RunningWorker(tmp_path, store, load_timeout=1.0 if name == "unpickling-hangs" else GUARD)
    deadly, good = digest(name), digest("unsigned")
    worker.versions_file.write_bytes(listed(("m", "1", good), ("bad", "1", deadly), ("n", "1", good)))
    try:
        for _ in range(2 if name == "unpickling-kills" else 1):
            worker.start()
            assert ended(worker) == (9 if name == "unpickling-kills" else 0)
        client = worker.start().connect()
        assert set(client.holds) == {("m", "1"), ("n", "1")}
        assert read_left_out(journal_file(tmp_path, 0)) == [Mark("bad", "1", deadly)]
    finally:
        worker.end()


def test_a_worker_can_be_reached_although_what_it_loads_first_takes_its_time(
    tmp_path: Path, store: ArtifactStore, digest: Digest
) -> None:
    """Every other model would wait for the one that hangs, after each restart."""
    worker = RunningWorker(tmp_path, store, load_timeout=3600.0)
    worker.versions_file.write_bytes(listed(("m", "1", digest("unsigned")), ("bad", "1", digest("unpickling-hangs"))))
    try:
        client = worker.start().connect()
        assert set(client.holds) == {("m", "1")}
        assert client.ask("m", "1", two(1.0)).failure is None
    finally:
        worker.end()


def test_a_worker_that_is_stopped_while_it_loads_blames_nothing(
    tmp_path: Path, store: ArtifactStore, digest: Digest
) -> None:
    """Two restarts of the data plane in a row would leave out a version that is merely slow."""
    worker = RunningWorker(tmp_path, store, load_timeout=3600.0)
    slow = digest("unpickling-hangs")
    worker.versions_file.write_bytes(listed(("m", "1", slow)))
    journal = journal_file(tmp_path, 0)
    try:
        for _ in range(2):
            worker.start()
            wait_until(lambda: journal.exists() and slow.encode() in journal.read_bytes(), "the load", GUARD)
            assert worker.process is not None
            worker.process.terminate()
            assert ended(worker) == 0
        assert read_left_out(journal) == []
        assert slow.encode() not in journal.read_bytes()
    finally:
        worker.end()
