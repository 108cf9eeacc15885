"""The inference worker: LitServe starts it, our own loop runs in it, on a unix socket instead of LitServe's queues."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litserve import LitAPI
from litserve.loops.base import LitLoop

from serving.channel import Decoder, Hello, Kind, pack
from serving.errors import BrokenChannel
from serving.logs import configure_logging, logger

_READ_SIZE = 2**18
_MAX_UNSENT = 16 * 2**20
_PR_SET_PDEATHSIG = 1

log = logger(__name__)


def end_with_parent(parent: int) -> None:
    """Have SIGTERM sent to this process when its parent, process `parent`, ends in whatever way. Linux only.

    The kernel goes by the parent's thread, so a parent must start such children from its main thread.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def join_our_log() -> None:
    """Send LitServe's log where ours goes; it gives itself a handler of its own on import and on every run."""
    theirs = logging.getLogger("litserve")
    theirs.handlers.clear()
    theirs.propagate = True
    theirs.setLevel(logging.WARNING)


class WorkerAPI(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """What LitServe calls in a worker before it hands over to the loop."""

    def __init__(self, loop: LitLoop, log_level: str) -> None:
        super().__init__()
        self.loop = loop
        self._log_level = log_level

    def setup(self, device: str) -> None:
        """The first of ours that runs in the worker's process, which inherits no logging from the parent."""
        configure_logging("data-plane", self._log_level)
        join_our_log()
        log.debug("worker set up", device=device)


class WorkerLoop(LitLoop):  # type: ignore[misc]  # LitServe has no types
    """What LitServe runs in a worker. Pickled into it: it must hold plain values only."""

    def __init__(self, addresses: list[str], drain_timeout: float) -> None:
        super().__init__()
        self._addresses = addresses
        self._drain_timeout = drain_timeout
        self._generations = [0] * len(addresses)

    def next_generation(self, worker: int) -> None:
        """Called in the parent, before each start of the worker."""
        self._generations[worker] += 1

    def __call__(self, _lit_api: LitAPI, _device: str, worker_id: int, *_litserves_queues: Any) -> None:
        """The worker's life, from here to the end of its process."""
        # Our parent for the kernel is the fork server. Without it nobody would learn how a worker ended.
        end_with_parent(os.getppid())
        hello = Hello(os.getpid(), worker_id, self._generations[worker_id])
        Worker(self._addresses[worker_id], hello, self._drain_timeout).run()


class Peer:
    """One HTTP process at the other end of a connection. Never blocks: what it does not take waits in a buffer."""

    def __init__(self, connection: socket.socket, watch: Callable[[int], None]) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._watch = watch
        self._decoder = Decoder()
        self._unsent = bytearray()

    def receive(self) -> bool:
        """Read what is there and answer it. False when the peer has closed."""
        data = self.connection.recv(_READ_SIZE)
        answers = [pack(Kind.PONG, frame.id) for frame in self._decoder.feed(data) if frame.kind is Kind.PING]
        if answers:
            self.send(b"".join(answers))
        return bool(data)

    def send(self, data: bytes) -> None:
        """Send now what fits, the rest when there is room. Raises BrokenChannel when the peer has stopped reading."""
        self._unsent += data
        self.flush()
        if len(self._unsent) > _MAX_UNSENT:
            raise BrokenChannel(f"the peer does not read, {len(self._unsent)} bytes wait for it")

    def flush(self) -> None:
        """Send of what waits as much as there is room for."""
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self.connection.send(self._unsent)]
        self._watch(selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0))


class Worker:
    """Listens, answers, and ends: on SIGTERM once every HTTP process has let go, and when its parent is gone."""

    def __init__(self, address: str, hello: Hello, drain_timeout: float) -> None:
        self._address = address
        self._hello = hello
        self._drain_timeout = drain_timeout
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._peers: set[Peer] = set()
        self._told_to_end = False
        self._ends_by: float | None = None

    def run(self) -> None:
        """Serve until the end."""
        self._watch_signals()
        self._watch_parent()
        self._listen()
        log.info("worker ready", worker=self._hello.worker, pid=self._hello.pid, generation=self._hello.generation)
        while not self._finished():
            for key, events in self._selector.select(self._patience()):
                key.data(events)
            if self._told_to_end and self._ends_by is None:
                self._begin_drain()

    def _finished(self) -> bool:
        return self._ends_by is not None and (not self._peers or time.monotonic() >= self._ends_by)

    def _patience(self) -> float | None:
        return None if self._ends_by is None else max(0.0, self._ends_by - time.monotonic())

    def _watch_signals(self) -> None:
        # Python repeats a select that a signal interrupts; a byte on a watched socket ends it.
        incoming, outgoing = socket.socketpair()
        incoming.setblocking(False)
        outgoing.setblocking(False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides the order
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        signal.set_wakeup_fd(outgoing.detach())
        self._selector.register(incoming, selectors.EVENT_READ, lambda _: incoming.recv(64))

    def _watch_parent(self) -> None:
        parent = multiprocessing.parent_process()
        if parent is None:
            return

        def parent_gone(_events: int) -> None:
            self._selector.unregister(parent.sentinel)
            self._end()

        self._selector.register(parent.sentinel, selectors.EVENT_READ, parent_gone)

    def _listen(self) -> None:
        # Binding a name of our own and moving it over the final one takes the address from a predecessor without a gap.
        own_name = Path(f"{self._address}.{os.getpid()}")
        self._listener.bind(str(own_name))
        self._listener.listen(64)
        self._listener.setblocking(False)
        own_name.rename(self._address)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the other side left before we came to it
        peer = Peer(connection, lambda events: self._rewatch(connection, events))
        self._selector.register(connection, selectors.EVENT_READ, lambda events: self._serve(peer, events))
        self._peers.add(peer)
        self._attempt(peer, lambda: peer.send(self._hello.pack()))

    def _rewatch(self, connection: socket.socket, events: int) -> None:
        key = self._selector.get_key(connection)
        if key.events != events:
            self._selector.modify(connection, events, key.data)

    def _serve(self, peer: Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._attempt(peer, peer.flush)
        if events & selectors.EVENT_READ and peer in self._peers:
            self._attempt(peer, lambda: None if peer.receive() else self._drop(peer))

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
        self._peers.discard(peer)
        self._selector.unregister(peer.connection)
        peer.connection.close()

    def _end(self) -> None:
        self._told_to_end = True

    def _begin_drain(self) -> None:
        self._ends_by = time.monotonic() + self._drain_timeout
        self._selector.unregister(self._listener)
        self._listener.close()
        for peer in list(self._peers):
            self._attempt(peer, lambda peer=peer: peer.send(pack(Kind.GOAWAY)))  # type: ignore[misc]  # bound now, not late
