"""Metrics per version in shared memory, read back with Prometheus' own parser."""

from prometheus_client.parser import text_string_to_metric_families

from serving.contracts import Stages
from serving.model_metrics import EVENTS, SLOTS, SlotMetrics


def _samples(metrics: SlotMetrics, names: dict[int, tuple[str, str]]) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families("\n".join(metrics.lines(names)) + "\n")
    return {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}


def test_processes_add_up_and_versions_stay_apart() -> None:
    """A canary's errors would be booked on the version that served before."""
    metrics = SlotMetrics(2)
    for process in range(2):
        pen = metrics.pen(process)
        pen.answered(0, Stages(0.001, 0.002, 0.003, 0.004), rows=3, batch_rows=7)
        pen.failed(SLOTS - 1, 504)
        pen.under_way(0, 4)
        pen.event("retried", 2)
    samples = _samples(metrics, {0: ("flights", "3"), SLOTS - 1: ("flights", "4")})
    assert samples["switchyard_predictions_total", ("flights", "3", "200")] == 2
    assert samples["switchyard_predictions_total", ("flights", "3", "504")] == 0
    assert samples["switchyard_predictions_total", ("flights", "4", "504")] == 2
    assert samples["switchyard_predicted_rows_total", ("flights", "3")] == 6
    assert samples["switchyard_requests_under_way", ("flights", "3")] == 8
    assert samples["switchyard_retried_total", ()] == 4
    assert samples["switchyard_prediction_batch_rows_sum", ("flights", "3")] == 14
    assert samples["switchyard_prediction_batch_rows_bucket", ("flights", "3", "4")] == 0
    assert samples["switchyard_prediction_batch_rows_bucket", ("flights", "3", "8")] == 2
    metrics.pen(0).forget_under_way()
    assert _samples(metrics, {0: ("flights", "3")})["switchyard_requests_under_way", ("flights", "3")] == 4


def test_the_stages_add_up_to_the_whole() -> None:
    """Whoever looks for lost milliseconds would not find them in any stage."""
    metrics = SlotMetrics(1)
    stages = Stages(0.001, 0.02, 0.3, 4.0)
    metrics.pen(0).answered(5, stages, rows=1, batch_rows=1)
    samples = _samples(metrics, {5: ("m", "1")})
    sums = [samples["switchyard_prediction_stage_seconds_sum", ("m", "1", stage)] for stage in Stages._fields]
    assert abs(sum(sums) - sum(stages)) < 1e-12


def test_odd_names_and_every_event_can_be_read() -> None:
    """One model with a quote in its name would make the whole page unreadable."""
    metrics = SlotMetrics(1)
    for event in EVENTS:
        metrics.pen(0).event(event)
    samples = _samples(metrics, {0: ('a"b\\c\nd', "1")})
    assert samples["switchyard_predicted_rows_total", ('a"b\\c\nd', "1")] == 0
    assert all(samples[f"switchyard_{event}_total", ()] == 1 for event in EVENTS)
