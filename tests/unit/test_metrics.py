"""Metrics in shared memory, read back with Prometheus' own parser."""

import os
from typing import NoReturn

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import BUCKETS, Metrics
from serving.supervisor import pause_before_restart


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}


def _count_as(metrics: Metrics, slot: int) -> NoReturn:
    """In a child: it must end here whatever happens, or it would go on with the tests."""
    status = 1
    try:
        recorder = metrics.recorder(slot)
        for _ in range(slot + 1):
            recorder.observe("/b", "GET", 200, 0.003)
        recorder.workers_connected(slot)
        status = 0
    finally:
        os._exit(status)


def test_any_process_sees_what_all_have_counted() -> None:
    """With several HTTP processes each scrape would show another fraction of the traffic, and rates would jump."""
    metrics = Metrics(("/a", "/b"), api_processes=3, workers=2, started=1.5)
    for slot in range(3):
        child = os.fork()
        if child == 0:
            _count_as(metrics, slot)
        assert os.waitpid(child, 0)[1] == 0
    samples = _samples(metrics)
    assert samples["switchyard_http_requests_total", ("/b", "GET", "200")] == 6
    assert samples["switchyard_http_request_duration_seconds_count", ("/b",)] == 6
    assert samples["switchyard_http_request_duration_seconds_count", ("/a",)] == 0
    assert abs(samples["switchyard_http_request_duration_seconds_sum", ("/b",)] - 0.018) < 1e-12
    assert [samples["switchyard_workers_connected", (str(slot),)] for slot in range(3)] == [0, 1, 2]
    assert samples["switchyard_process_start_time_seconds", ()] == 1.5


def test_durations_fall_into_their_buckets() -> None:
    """Latency alerts would fire a bucket too early or too late."""
    metrics = Metrics(("/a",), api_processes=1, workers=1, started=0.0)
    recorder = metrics.recorder(0)
    for bound in BUCKETS:
        recorder.observe("/a", "POST", 500, bound)
    recorder.observe("/a", "PROPFIND", 405, 99.0)
    samples = _samples(metrics)
    found = [samples["switchyard_http_request_duration_seconds_bucket", ("/a", str(bound))] for bound in BUCKETS]
    assert found == list(range(1, len(BUCKETS) + 1))
    assert samples["switchyard_http_request_duration_seconds_bucket", ("/a", "+Inf")] == len(BUCKETS) + 1
    assert samples["switchyard_http_requests_total", ("/a", "other", "405")] == 1


def test_restarts_are_counted_apart() -> None:
    """A worker that dies again and again would look like an HTTP process that does, or like neither."""
    metrics = Metrics(("/a",), api_processes=1, workers=4, started=0.0)
    metrics.worker_restarted()
    metrics.worker_restarted()
    metrics.api_restarted()
    samples = _samples(metrics)
    assert samples["switchyard_worker_restarts_total", ()] == 2
    assert samples["switchyard_api_restarts_total", ()] == 1
    assert samples["switchyard_workers", ()] == 4


def test_a_crash_loop_slows_down() -> None:
    """A worker that cannot start would eat a core by being started without pause; a single death must cost nothing."""
    pauses = [pause_before_restart(lives) for lives in range(12)]
    assert pauses[:4] == [0.0, 0.0, 0.2, 0.4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pause_before_restart(10_000) == 10.0
