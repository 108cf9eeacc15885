"""Metrics per version in shared memory, read back with Prometheus' own parser."""

import asyncio

from msgspec.structs import astuple
from prometheus_client.parser import text_string_to_metric_families

from serving.catalogue import Catalogue
from serving.contracts import Stages
from serving.model_metrics import EVENTS, SLOTS, SlotMetrics
from serving.routing import RoutingTable
from serving.version_gauges import VersionGauges


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
    sums = [samples["switchyard_prediction_stage_seconds_sum", ("m", "1", stage)] for stage in Stages.__struct_fields__]
    assert abs(sum(sums) - sum(astuple(stages))) < 1e-12


def test_odd_names_and_every_event_can_be_read() -> None:
    """One model with a quote in its name would make the whole page unreadable."""
    metrics = SlotMetrics(1)
    for event in EVENTS:
        metrics.pen(0).event(event)
    samples = _samples(metrics, {0: ('a"b\\c\nd', "1")})
    assert samples["switchyard_predicted_rows_total", ('a"b\\c\nd', "1")] == 0
    assert all(samples[f"switchyard_{event}_total", ()] == 1 for event in EVENTS)


def test_a_slot_that_is_dealt_anew_begins_at_nothing() -> None:
    """A new version would be born with the errors of another one that is long gone, and be rolled back for them."""
    metrics = SlotMetrics(2)
    old, new = ("flights", "3"), ("delays", "1")
    pens = [metrics.pen(process) for process in range(2)]
    for pen in pens:
        pen.deal({0: old, 1: ("flights", "4")})
        pen.answered(0, Stages(0.001, 0.002, 0.003, 0.004), rows=3, batch_rows=7)
        pen.failed(1, 500)
        pen.event("retried")
        pen.deal({0: old, 1: ("flights", "4")})  # the same again
    assert _samples(metrics, {0: old})["switchyard_predictions_total", (*old, "200")] == 2
    pens[0].deal({0: new})
    pens[0].failed(0, 504)
    samples = _samples(metrics, {0: new, 1: ("flights", "4")})
    assert samples["switchyard_predictions_total", (*new, "200")] == 0  # though the other process has not heard of it
    assert samples["switchyard_predictions_total", (*new, "504")] == 1
    assert samples["switchyard_prediction_batch_rows_sum", new] == 0
    assert samples["switchyard_predictions_total", ("flights", "4", "500")] == 2
    assert samples["switchyard_retried_total", ()] == 2
    metrics.pen(1).deal({0: new})  # as after a restart of that process
    assert _samples(metrics, {0: new})["switchyard_predictions_total", (*new, "504")] == 1


def test_what_is_under_way_is_true_for_versions_without_requests() -> None:
    """An idle version would seem to hang for ever with what its last request found there."""
    metrics = SlotMetrics(1)

    async def work() -> dict[tuple[str, tuple[str, ...]], float]:
        entry = {"digest": "0" * 64, "signature": None}
        model = {
            "revision": 1,
            "config": {},
            "routes": [{"version": "2", "weight": 1.0}],
            "versions": {"1": {**entry, "slot": 0}, "2": {**entry, "slot": 1}},
        }
        catalogue = Catalogue()
        gauges = VersionGauges.started(catalogue, metrics.pen(0))
        catalogue.apply(RoutingTable.from_json({"generation": 1, "models": {"m": model}}))
        gauges.follow()
        metrics.pen(0).under_way(0, 9)  # as the last request of version 1 left it
        catalogue.get("m").admission.enter("m")
        end = asyncio.get_running_loop().time() + 10
        names = {0: ("m", "1"), 1: ("m", "2")}
        while _samples(metrics, names)["switchyard_requests_under_way", ("m", "1")] == 9:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.02)
        return _samples(metrics, names)

    samples = asyncio.run(work())
    assert samples["switchyard_requests_under_way", ("m", "1")] == 1
    assert samples["switchyard_requests_under_way", ("m", "2")] == 1
