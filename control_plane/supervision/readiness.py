"""How to see that a process that was started can be used."""

import http.client
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

_ASK_EVERY = 0.1
_ANSWER_WITHIN = 2.0


class Readiness(Protocol):
    """One way to ask."""

    def is_ready(self, pid: int) -> bool:
        """Whether the process with this pid, started by us, can be used now."""
        ...


@dataclass(frozen=True)
class Answers:
    """Ready when a GET of `url` is answered with 200."""

    url: str

    def is_ready(self, pid: int) -> bool:  # noqa: ARG002 - the port was free before the process was started
        address = urlsplit(self.url)
        # http.client and not a comfortable client: those obey proxy variables, and loading them takes longer.
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_ANSWER_WITHIN)
        try:
            connection.request("GET", address.path)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class HasWritten:
    """Ready when `file` contains the pid of the process, or of one in its group: an older file does not count."""

    file: Path

    def is_ready(self, pid: int) -> bool:
        try:
            return os.getpgid(int(self.file.read_text())) == pid
        except (OSError, ValueError, OverflowError):
            return False


class Probe:
    """Asks again and again in a thread of its own, so that a slow answer holds nothing else up."""

    def __init__(self, readiness: Readiness, pid: int) -> None:
        self._readiness, self._pid = readiness, pid
        self._ready, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._ask, daemon=True, name=f"probe-{pid}").start()

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    def end(self) -> None:
        self._ended.set()

    def _ask(self) -> None:
        while not self._ended.is_set():
            if self._readiness.is_ready(self._pid):
                self._ready.set()
                return
            self._ended.wait(_ASK_EVERY)
