"""Prometheus metrics per model and version, in shared memory like those of the routes (serving/metrics.py)."""

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

from serving.contracts import Stages

SLOTS = 256
"""Versions that have series at once; the agent deals the slots out."""
OUTCOMES = (200, 429, 500, 503, 504)
EVENTS = ("retried", "late", "lost", "refused", "predictions_dropped", "payloads_dropped", "spans_dropped")
_EVENT_TEXTS = {
    "retried": "Calls asked again because their worker ended.",
    "late": "Answers that came after their deadline and were dropped.",
    "lost": "Calls that ended with their worker and could not be asked again.",
    "refused": "Repetitions of a call that had ended two workers.",
    "predictions_dropped": "Predictions that could not be kept for the log.",
    "payloads_dropped": "Payloads that were not kept for the log.",
    "spans_dropped": "Spans that the collector of traces did not get.",
}
STAGE_BUCKETS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the stages' histograms, in seconds."""
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the histogram of batch sizes, in rows."""

_STAGE_CELLS = len(STAGE_BUCKETS) + 2  # one more bucket for the rest, and the sum
_BATCH_CELLS = len(BATCH_BUCKETS) + 2
_ROWS = len(OUTCOMES)
_UNDER_WAY = _ROWS + 1
_STAGES = _UNDER_WAY + 1
_BATCH = _STAGES + len(Stages.__struct_fields__) * _STAGE_CELLS
_OWNER = _BATCH + _BATCH_CELLS  # whose counts these are: see _fingerprint
_SLOT_CELLS = _OWNER + 1
_CLEARED = bytes(_OWNER * 8)
_PROCESS_CELLS = SLOTS * _SLOT_CELLS + len(EVENTS)
_CELL = 8
_OUTCOME_INDEX = {status: index for index, status in enumerate(OUTCOMES)}
_EVENT_INDEX = {event: index for index, event in enumerate(EVENTS)}


class SlotMetrics:
    """Counters per slot that outlive the process that counts. Make it before the first fork; one writer per cell."""

    def __init__(self, api_processes: int) -> None:
        self._api_processes = api_processes
        memory = memoryview(mmap.mmap(-1, api_processes * _PROCESS_CELLS * _CELL))
        self._counts = memory.cast("Q")
        self._seconds = memory.cast("d")
        self._counting: dict[int, list[int]] = {}

    def pen(self, api_process: int) -> "SlotPen":
        """What this HTTP process writes with; a restarted one goes on where its predecessor was killed."""
        return SlotPen(self._counts, self._seconds, api_process * _PROCESS_CELLS)

    def lines(self, names: Mapping[int, tuple[str, str]]) -> Iterator[str]:
        """Prometheus' text for these slots: slot -> model and version."""
        labelled = [(slot, f'model="{_escaped(model)}",version="{_escaped(v)}"') for slot, (model, v) in names.items()]
        # A process that has not heard yet that a slot was dealt anew counts there for the version of before.
        self._counting = {slot: self._processes_of(slot, name) for slot, name in names.items()}
        yield from self._outcome_lines(labelled)
        yield from self._stage_lines(labelled)
        yield from self._batch_lines(labelled)
        for event, index in _EVENT_INDEX.items():
            yield from _head(f"{event}_total", "counter", _EVENT_TEXTS[event])
            yield f"switchyard_{event}_total {self._sum(SLOTS * _SLOT_CELLS + index)}"

    def _outcome_lines(self, labelled: Sequence[tuple[int, str]]) -> Iterator[str]:
        yield from _head("predictions_total", "counter", "Requests put to a version, by status.")
        for slot, labels in labelled:
            for status, index in _OUTCOME_INDEX.items():
                yield f'switchyard_predictions_total{{{labels},status="{status}"}} {self._of(slot, index)}'
        yield from _head("predicted_rows_total", "counter", "Rows answered.")
        for slot, labels in labelled:
            yield f"switchyard_predicted_rows_total{{{labels}}} {self._of(slot, _ROWS)}"
        yield from _head(
            "requests_under_way", "gauge", "Requests of the version's model that workers owe an answer to."
        )
        for slot, labels in labelled:
            yield f"switchyard_requests_under_way{{{labels}}} {self._of(slot, _UNDER_WAY)}"

    def _stage_lines(self, labelled: Sequence[tuple[int, str]]) -> Iterator[str]:
        name = "prediction_stage_seconds"
        yield from _head(name, "histogram", "Where the time of answered requests went; the stages add up to the whole.")
        for slot, labels in labelled:
            for number, stage in enumerate(Stages.__struct_fields__):
                start = _STAGES + number * _STAGE_CELLS
                yield from self._histogram(slot, start, STAGE_BUCKETS, name, f'{labels},stage="{stage}"')

    def _batch_lines(self, labelled: Sequence[tuple[int, str]]) -> Iterator[str]:
        name = "prediction_batch_rows"
        yield from _head(name, "histogram", "Rows of the batch that a request was computed in.")
        for slot, labels in labelled:
            yield from self._histogram(slot, _BATCH, BATCH_BUCKETS, name, labels)

    def _histogram(
        self, slot: int, start: int, bounds: Sequence[float], name: str, labels: str
    ) -> Iterator[str]:  # fmt: skip
        total = 0
        for index, bound in enumerate((*map(str, bounds), "+Inf")):
            total += self._of(slot, start + index)
            yield f'switchyard_{name}_bucket{{{labels},le="{bound}"}} {total}'
        cell = slot * _SLOT_CELLS + start + len(bounds) + 1
        seconds = sum(self._seconds[api * _PROCESS_CELLS + cell] for api in self._counting[slot])
        yield f"switchyard_{name}_sum{{{labels}}} {seconds!r}"
        yield f"switchyard_{name}_count{{{labels}}} {total}"

    def _of(self, slot: int, cell: int) -> int:
        place = slot * _SLOT_CELLS + cell
        return sum(self._counts[api * _PROCESS_CELLS + place] for api in self._counting[slot])

    def _processes_of(self, slot: int, name: tuple[str, str]) -> list[int]:
        """HTTP processes whose counts in this slot are the version's; 0: nothing was dealt there yet."""
        known = (0, _fingerprint(*name))
        place = slot * _SLOT_CELLS + _OWNER
        return [api for api in range(self._api_processes) if self._counts[api * _PROCESS_CELLS + place] in known]

    def _sum(self, cell: int) -> int:
        return sum(self._counts[api * _PROCESS_CELLS + cell] for api in range(self._api_processes))


class SlotPen:
    """One HTTP process's pen; a Tracker (serving/prediction.py)."""

    def __init__(self, counts: "memoryview[int]", seconds: "memoryview[float]", start: int) -> None:
        self._counts = counts
        self._seconds = seconds
        self._start = start

    def answered(self, slot: int, stages: Stages, rows: int, batch_rows: int) -> None:
        """See Tracker."""
        start = self._start + slot * _SLOT_CELLS
        counts, seconds = self._counts, self._seconds
        counts[start] += 1
        counts[start + _ROWS] += rows
        at = start + _STAGES
        for duration in (stages.validate, stages.queue, stages.compute, stages.encode):
            counts[at + bisect_left(STAGE_BUCKETS, duration)] += 1
            seconds[at + _STAGE_CELLS - 1] += duration
            at += _STAGE_CELLS
        counts[at + bisect_left(BATCH_BUCKETS, batch_rows)] += 1
        seconds[at + _BATCH_CELLS - 1] += batch_rows

    def failed(self, slot: int, status: int) -> None:
        """See Tracker."""
        self._counts[self._start + slot * _SLOT_CELLS + _OUTCOME_INDEX[status]] += 1

    def under_way(self, slot: int, count: int) -> None:
        """See Tracker."""
        self._counts[self._start + slot * _SLOT_CELLS + _UNDER_WAY] = count

    def event(self, event: str, count: int = 1) -> None:
        """One of EVENTS."""
        self._counts[self._start + SLOTS * _SLOT_CELLS + _EVENT_INDEX[event]] += count

    def deal(self, names: Mapping[int, tuple[str, str]]) -> None:
        """From now on these slots are for these versions; what this process counted there for others is cleared."""
        for slot, name in names.items():
            start = self._start + slot * _SLOT_CELLS
            owner = _fingerprint(*name)
            if self._counts[start + _OWNER] != owner:
                self._counts[start : start + _OWNER] = memoryview(_CLEARED).cast("Q")
                self._counts[start + _OWNER] = owner

    def forget_under_way(self) -> None:
        """A process that starts has nothing under way, whatever its predecessor had when it was killed."""
        for slot in range(SLOTS):
            self.under_way(slot, 0)


def _fingerprint(model_id: str, version: str) -> int:
    """A number for a version, never 0."""
    return int.from_bytes(blake2b(f"{model_id}\0{version}".encode(), digest_size=8).digest()) | 1


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP switchyard_{name} {text}"
    yield f"# TYPE switchyard_{name} {kind}"


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
