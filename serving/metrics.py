"""Prometheus metrics of all HTTP processes in one piece of shared memory, so that any of them answers with the sum."""

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import product

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

METHODS = ("GET", "HEAD", "POST", "other")
STATUSES = (200, 400, 404, 405, 408, 413, 415, 422, 429, 499, 500, 503, 504)
"""What we answer with; 499 is a client that left before it could be answered."""
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the duration histogram, in seconds."""

_METHOD_INDEX = {method: index for index, method in enumerate(METHODS)}
_STATUS_INDEX = {status: index for index, status in enumerate(STATUSES)}
_OTHER_METHOD = METHODS.index("other")
_COUNTERS_PER_ROUTE = len(METHODS) * len(STATUSES)
# Counts by method and status, then the histogram's buckets (one more for the rest) and its sum.
_CELLS_PER_ROUTE = _COUNTERS_PER_ROUTE + len(BUCKETS) + 2
_CELL = 8


class Metrics:
    """Counters that outlive the process that counts. Make it before the first fork; each cell has one writer.

    Without a lock: a cell is eight aligned bytes, written by one process and read by the others.
    """

    def __init__(self, routes: Sequence[str], api_processes: int, workers: int, started: float) -> None:
        """`routes` are the templates that may be counted, `started` the server's start in seconds since the epoch."""
        self.routes = tuple(routes)
        self._api_processes = api_processes
        self._workers = workers
        self._started = started
        # One cell more per HTTP process: the workers it is connected to. Before them all, the parent's three counters.
        self._slot_cells = len(routes) * _CELLS_PER_ROUTE + 1
        memory = memoryview(mmap.mmap(-1, (3 + api_processes * self._slot_cells) * _CELL))
        self._counts = memory.cast("Q")
        self._seconds = memory.cast("d")

    def recorder(self, slot: int) -> "Recorder":
        """What HTTP process number `slot` writes with; a restarted one goes on where its predecessor was killed."""
        return Recorder(self._counts, self._seconds, self.routes, self._slot(slot))

    def worker_restarted(self) -> None:
        """The parent only."""
        self._counts[0] += 1

    def api_restarted(self) -> None:
        """The parent only."""
        self._counts[1] += 1

    def helper_restarted(self) -> None:
        """The parent only: the agent or the shipper."""
        self._counts[2] += 1

    def render(self) -> bytes:
        """The whole in Prometheus' text format."""
        return ("\n".join(self._lines()) + "\n").encode()

    def _slot(self, slot: int) -> int:
        return 3 + slot * self._slot_cells

    def _lines(self) -> Iterator[str]:
        yield from self._request_lines()
        yield from self._duration_lines()
        yield from _head("workers_connected", "gauge", "Workers that an HTTP process is connected to.")
        for api in range(self._api_processes):
            connected = self._counts[self._slot(api + 1) - 1]
            yield f'switchyard_workers_connected{{api_process="{api}"}} {connected}'
        yield from _single("workers", "gauge", "Workers that there should be.", self._workers)
        yield from _single(
            "worker_restarts_total", "counter", "Workers started again after one ended.", self._counts[0]
        )
        yield from _single(
            "api_restarts_total", "counter", "HTTP processes started again after one ended.", self._counts[1]
        )
        yield from _single(
            "helper_restarts_total", "counter", "Agents and shippers started again after one ended.", self._counts[2]
        )
        yield from _single(
            "process_start_time_seconds", "gauge", "Start of the server, in seconds since the epoch.", self._started
        )

    def _request_lines(self) -> Iterator[str]:
        yield from _head("http_requests_total", "counter", "Requests, by route template, method and status.")
        for index, route in enumerate(self.routes):
            counts = self._summed(index, 0, _COUNTERS_PER_ROUTE)
            for (method, status), count in zip(product(METHODS, STATUSES), counts, strict=True):
                if count:
                    labels = f'route="{route}",method="{method}",status="{status}"'
                    yield f"switchyard_http_requests_total{{{labels}}} {count}"

    def _duration_lines(self) -> Iterator[str]:
        name = "http_request_duration_seconds"
        yield from _head(name, "histogram", "Time from a request's headers to its answer, by route template.")
        for index, route in enumerate(self.routes):
            buckets = self._summed(index, _COUNTERS_PER_ROUTE, len(BUCKETS) + 1)
            total = 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), buckets, strict=True):
                total += count
                yield f'switchyard_{name}_bucket{{route="{route}",le="{bound}"}} {total}'
            yield f'switchyard_{name}_sum{{route="{route}"}} {self._duration_sum(index)!r}'
            yield f'switchyard_{name}_count{{route="{route}"}} {total}'

    def _summed(self, route: int, offset: int, cells: int) -> list[int]:
        starts = [self._slot(api) + route * _CELLS_PER_ROUTE + offset for api in range(self._api_processes)]
        return [sum(each) for each in zip(*(self._counts[start : start + cells] for start in starts), strict=True)]

    def _duration_sum(self, route: int) -> float:
        last = (route + 1) * _CELLS_PER_ROUTE - 1
        return sum(self._seconds[self._slot(api) + last] for api in range(self._api_processes))


class Recorder:
    """One HTTP process's pen."""

    def __init__(
        self, counts: "memoryview[int]", seconds: "memoryview[float]", routes: Sequence[str], start: int
    ) -> None:
        self._counts = counts
        self._seconds = seconds
        self._connected = start + len(routes) * _CELLS_PER_ROUTE
        self._starts = {route: start + index * _CELLS_PER_ROUTE for index, route in enumerate(routes)}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request and its duration."""
        start = self._starts[route]
        counter = _METHOD_INDEX.get(method, _OTHER_METHOD) * len(STATUSES) + _STATUS_INDEX[status]
        self._counts[start + counter] += 1
        self._counts[start + _COUNTERS_PER_ROUTE + bisect_left(BUCKETS, seconds)] += 1
        self._seconds[start + _CELLS_PER_ROUTE - 1] += seconds

    def workers_connected(self, count: int) -> None:
        """How many workers this process is connected to now."""
        self._counts[self._connected] = count


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP switchyard_{name} {text}"
    yield f"# TYPE switchyard_{name} {kind}"


def _single(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"switchyard_{name} {value!r}"
