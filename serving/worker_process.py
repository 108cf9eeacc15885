"""Inside a worker: one loop over all connections, which reads what is there, answers one batch, and looks again."""

import contextlib
import multiprocessing
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from serving.artifacts import ArtifactStore
from serving.batch_runner import Reply, refuse_expired, refuse_unknown, run_batch
from serving.batching import Batch, BatchQueue, Waiting
from serving.channel import Frame, Hello, Kind, Question, listen_at, pack, split_key, version_key
from serving.errors import BrokenChannel
from serving.holdings import Holdings, Report
from serving.load_journal import LoadWatch
from serving.loader import ModelLoader
from serving.logs import logger
from serving.peer import Peer

GRACE = 5.0
"""Seconds beyond a model's timeout that one call of it may take before the worker is replaced."""
# A new fork server needs some seconds for its imports, on a busy machine many; until then we are better than nobody.
_UNTIL_SUCCESSORS = 60.0
# Else the thread that loads a model would keep the interpreter for 5 ms at a time, and requests waiting.
_SWITCH_INTERVAL = 0.0005

log = logger(__name__)


class Worker:
    """Listens, answers, and ends: on SIGTERM once every HTTP process has let go, and when its parent is gone."""

    def __init__(
        self,
        address: str,
        hello: Hello,
        *,
        drain_timeout: float,
        artifact_folder: Path,
        versions_file: Path,
        set_busy_until: Callable[[float], None],
        load_watch: LoadWatch,
    ) -> None:
        """`set_busy_until`: tell the parent until when a call may take, monotonic seconds; 0 when it is over."""
        self._address = address
        self._hello = hello
        self._drain_timeout = drain_timeout
        self._versions_file = versions_file
        self._set_busy_until = set_busy_until
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket
        self._peers: set[Peer] = set()
        self._parked: dict[Peer, list[Waiting[Peer]]] = {}
        """What choked peers have asked: nothing is computed for them while they do not take their answers."""
        self._fork_server = os.getppid()
        self._parent_gone = False
        self._told_to_end = False
        self._ends_by: float | None = None
        self._wakeup = self._watch_wakeup()
        self._holdings = Holdings(ModelLoader(ArtifactStore(artifact_folder)), self._wake, load_watch)
        self._queue: BatchQueue[Peer] = BatchQueue(lambda key: self._holdings.batch_size(split_key(key)[0]))

    def run(self) -> None:
        """Serve until the end."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._watch_signals()
        self._watch_parent()
        # Before anybody can reach it: a worker that is back from a crash is whole when the first request comes.
        self._holdings.load_listed(self._versions_file, lambda: not self._told_to_end)
        self._listen()
        log.info("worker ready", worker=self._hello.worker, pid=self._hello.pid, generation=self._hello.generation)
        while not self._finished():
            for key, events in self._selector.select(self._patience()):
                key.data(events)
            if self._parked:
                self._look_after_parked()
            self._holdings.settle(lambda: self._send_to_all(self._holds()))
            if not self._told_to_end and self._holdings.give_up_overdue():
                self._end()
            if self._told_to_end and self._ends_by is None:
                self._begin_drain()
            self._answer_batch()
        self._holdings.close()

    def _finished(self) -> bool:
        return self._ends_by is not None and (not self._peers or time.monotonic() >= self._ends_by)

    def _patience(self) -> float | None:
        if self._queue:
            return 0.0
        due = [each for each in (self._ends_by, self._load_deadline()) if each is not None]
        due += [peer.given_up_at for peer in self._parked]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _load_deadline(self) -> float | None:
        return None if self._told_to_end else self._holdings.deadline

    def _answer_batch(self) -> None:
        batch = self._queue.next_batch(time.monotonic())
        if batch is not None:
            self._send_replies(refuse_expired(batch.expired) + (self._compute(batch) if batch.requests else []))

    def _compute(self, batch: Batch[Peer]) -> list[Reply[Peer]]:
        model_id, version, variant = split_key(batch.key)
        model = self._holdings.find(version_key(model_id, version))
        if model is None:  # dropped while they waited
            return refuse_unknown(batch.requests)
        for each in batch.requests:
            if each.question.solo:  # if this process ends now, that is what it ended of
                self._send(each.sender, pack(Kind.BEGUN, each.id))
        limit = self._holdings.timeout(model_id) + GRACE
        try:
            return run_batch(batch, model, variant, lambda: self._set_busy_until(time.monotonic() + limit))
        finally:
            self._set_busy_until(0.0)

    def _send_replies(self, replies: list[Reply[Peer]]) -> None:
        """All frames of a peer in one write."""
        frames: dict[Peer, list[bytes]] = {}
        for peer, frame in replies:
            frames.setdefault(peer, []).append(frame)
        for peer, some in frames.items():
            self._send(peer, b"".join(some))

    def _look_after_parked(self) -> None:
        """Go on with those who take their answers again, and give up those who have taken nothing for long."""
        now = time.monotonic()
        for peer in [each for each in self._parked if not each.choked or now >= each.given_up_at]:
            if peer.choked:
                log.warning("connection to an HTTP process closed", reason="it does not read its answers")
                self._drop(peer)
            else:
                for request in self._parked.pop(peer):
                    self._queue.add(request)

    def _receive(self, peer: Peer) -> None:
        frames = peer.receive()
        if frames is None:
            self._drop(peer)
            return
        now = time.monotonic()
        pongs = []
        for frame in frames:
            if frame.kind is Kind.PREDICT:
                self._enqueue(peer, frame, now)
            elif frame.kind is Kind.PING:
                pongs.append(pack(Kind.PONG, frame.id))
            elif frame.kind is Kind.CONTROL:
                self._control(peer, frame)
        if pongs:
            self._send(peer, b"".join(pongs))

    def _enqueue(self, peer: Peer, frame: Frame, now: float) -> None:
        question, body = Question.unpack(frame.payload)
        if question.rows < 1 or question.key.count(b"\0") < 2:
            raise BrokenChannel("a PREDICT without rows or version")
        self._queue.add(Waiting(peer, frame.id, question, body, now))

    def _control(self, peer: Peer, frame: Frame) -> None:
        def report(done: Report) -> None:
            self._send(peer, pack(Kind.REPORT, frame.id, orjson.dumps(done)))

        self._holdings.order(frame.payload, report)

    def _holds(self) -> bytes:
        return pack(Kind.HOLDS, payload=orjson.dumps(self._holdings.held()))

    def _send_to_all(self, data: bytes) -> None:
        for peer in list(self._peers):
            self._send(peer, data)

    def _send(self, peer: Peer, data: bytes) -> None:
        if peer in self._peers:
            self._attempt(peer, lambda: peer.send(data))
        if peer.choked and peer in self._peers and peer not in self._parked:
            self._parked[peer] = self._queue.take_out(peer)

    def _watch_signals(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides the order
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        # Python repeats a select that a signal interrupts; a byte on a watched socket ends it.
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

    def _watch_wakeup(self) -> socket.socket:
        """A socket that ends the loop's waiting when a byte is sent to it, by a signal or from another thread."""
        incoming, outgoing = socket.socketpair()
        incoming.setblocking(False)
        outgoing.setblocking(False)
        self._selector.register(incoming, selectors.EVENT_READ, lambda _: incoming.recv(4096))
        return outgoing

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
            self._wakeup.send(b"\0")

    def _watch_parent(self) -> None:
        parent = multiprocessing.parent_process()
        if parent is None:
            return

        def parent_gone(_events: int) -> None:
            self._selector.unregister(parent.sentinel)
            self._parent_gone = True
            if self._ends_by is not None:  # nobody will send a successor any more
                self._ends_by = min(self._ends_by, time.monotonic() + self._drain_timeout)
            self._end()

        self._selector.register(parent.sentinel, selectors.EVENT_READ, parent_gone)

    def _listen(self) -> None:
        self._listener = listen_at(self._address)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the other side left before we came to it
        peer = Peer(connection, lambda events: self._rewatch(connection, events))
        self._selector.register(connection, selectors.EVENT_READ, lambda events: self._serve(peer, events))
        self._peers.add(peer)
        self._send(peer, self._hello.pack() + self._holds())

    def _rewatch(self, connection: socket.socket, events: int) -> None:
        key = self._selector.get_key(connection)
        if key.events != events:
            self._selector.modify(connection, events, key.data)

    def _serve(self, peer: Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._attempt(peer, peer.flush)
        if events & selectors.EVENT_READ and peer in self._peers:
            self._attempt(peer, lambda: self._receive(peer))

    def _attempt(self, peer: Peer, act: Callable[[], None]) -> None:
        """A peer that fails is dropped: it connects again, and no other peer notices."""
        try:
            act()
        except BrokenChannel as problem:
            log.warning("connection to an HTTP process closed", reason=problem.detail)
            self._drop(peer)
        except OSError:
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        if peer not in self._peers:
            return
        self._peers.remove(peer)
        self._queue.take_out(peer)
        self._parked.pop(peer, None)
        self._selector.unregister(peer.connection)
        peer.connection.close()

    def _end(self) -> None:
        self._told_to_end = True

    def _begin_drain(self) -> None:
        alone = os.getppid() != self._fork_server and not self._parent_gone
        patience = max(self._drain_timeout, _UNTIL_SUCCESSORS) if alone else self._drain_timeout
        self._ends_by = time.monotonic() + patience
        self._selector.unregister(self._listener)
        self._listener.close()
        self._send_to_all(pack(Kind.GOAWAY))
