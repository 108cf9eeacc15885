"""Ended requests to an OpenTelemetry collector: OTLP over HTTP from a thread, which no request ever waits for.

What the collector does not take is dropped and counted, never kept: predictions matter more than spans of them.
"""

import http.client
import threading
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from serving import otlp
from serving.logs import logger
from serving.tracing import Trace

_MOST_WAITING = 4096
_INTERVAL = 1.0
_BATCH = 512
"""Requests in one message; as soon as so many wait they are sent."""
_AT_ONCE = 8
_PAUSE = 0.0005
"""Seconds after each few: encoding holds the interpreter's lock, and the event loop of this process wants it too."""
_PATIENCE = 5.0
_LAST_PATIENCE = 3.0
_QUIET_SECONDS = 60.0

log = logger(__name__)


class SpanExporter:
    """A Sink (serving/tracing.py). Make it in the process that it is to work in."""

    def __init__(
        self,
        endpoint: str,
        on_dropped: Callable[[int], None],
        *,
        instance: str,
        most_waiting: int = _MOST_WAITING,
        interval: float = _INTERVAL,
    ) -> None:
        """`endpoint` is the whole URL; `on_dropped` is told of spans, from any thread, one call at a time.

        `instance` names this process to the collector; up to `most_waiting` requests wait, for `interval` seconds.
        """
        self._endpoint = endpoint
        self._resource = otlp.resource("switchyard-data-plane", instance)
        self._on_dropped = on_dropped
        self._most_waiting = most_waiting
        self._interval = interval
        self._waiting: deque[Trace] = deque()
        self._counting = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._run, name="span-export", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send what waits if that is done within some seconds, and end."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_LAST_PATIENCE)
        self._drop(self._taken(len(self._waiting)))

    def add(self, trace: Trace) -> None:
        """See Sink."""
        if len(self._waiting) >= self._most_waiting:
            self._drop([trace])
            return
        self._waiting.append(trace)
        if len(self._waiting) == _BATCH:
            self._wake.set()

    def _run(self) -> None:
        ended = False
        while not ended:
            self._wake.wait(self._interval)
            self._wake.clear()
            ended = self._closing.is_set()  # asked before the last look, so that nothing is added after it
            while batch := self._taken(_BATCH):
                self._send(batch)

    def _taken(self, most: int) -> list[Trace]:
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _send(self, batch: list[Trace]) -> None:
        try:
            # Connected first: for a collector that is away nothing is encoded.
            connection = self._connected()
            try:
                rejected = self._post(connection, self._encoded(batch))
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as problem:
            self._refused(batch, str(problem) or type(problem).__name__)
        except Exception as problem:  # noqa: BLE001  # one request that cannot be told must not end the telling
            self._refused(batch, type(problem).__name__)
        else:
            if rejected:
                self._count(rejected)

    def _connected(self) -> http.client.HTTPConnection:
        url = urlsplit(self._endpoint)
        secure = url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=_LAST_PATIENCE if self._closing.is_set() else _PATIENCE)
        connection.connect()
        return connection

    def _encoded(self, batch: list[Trace]) -> bytes:
        """Messages of a few requests each, one after the other, are one message of all: that is how protobuf merges."""
        parts = []
        for at in range(0, len(batch), _AT_ONCE):
            parts.append(otlp.message(self._resource, batch[at : at + _AT_ONCE]))
            if not self._closing.is_set():
                time.sleep(_PAUSE)
        return b"".join(parts)

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> int:
        """How many of the spans are not taken. Raises OSError, HTTPException."""
        url = urlsplit(self._endpoint)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("POST", target, body, {"content-type": otlp.CONTENT_TYPE, "connection": "close"})
        answer = connection.getresponse()
        said = answer.read(otlp.LONGEST_ANSWER)
        if not 200 <= answer.status < 300:
            raise http.client.HTTPException(f"status {answer.status}")
        return otlp.rejected(said) if answer.getheader("content-type", "") == otlp.CONTENT_TYPE else 0

    def _refused(self, batch: list[Trace], reason: str) -> None:
        self._drop(batch)
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            log.warning("spans dropped, the collector does not take them", endpoint=self._endpoint, reason=reason)

    def _drop(self, batch: list[Trace]) -> None:
        if batch:
            self._count(sum(map(otlp.spans_in, batch)))

    def _count(self, spans: int) -> None:
        with self._counting:
            self._on_dropped(spans)
