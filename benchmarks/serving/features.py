"""What features cost: ours in several shapes, all of them up at once and loaded in turns, so that noise hits all alike."""

from collections import defaultdict
from contextlib import ExitStack

from benchmarks.serving.candidates import Candidate
from benchmarks.serving.measure import Figures, Generator, be_quiet, figures, ready
from benchmarks.serving.models import BenchModel
from benchmarks.serving.ours import WITHOUT_LOG, Shape, can_leave_out_the_log, switchyard
from benchmarks.serving.results import Features, Plan, Say

FULL = "one model, two versions, everything on"
WITHOUT_THE_LOG = "the same without the prediction log"
ONE_VERSION = "the same with one version, so without a split"
THREE_MODELS = "three models with two versions each"

_CONNECTIONS = 32


def run_features(model: BenchModel, plan: Plan, generator: Generator, say: Say) -> Features:
    """Requests/s of each variant at 32 connections, one measurement an alternation."""
    variants, absent = _variants()
    found: dict[str, list[Figures]] = defaultdict(list)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(ready(each, model, generator)) for name, each in variants.items()}
        names = list(servers)
        for number in range(plan.alternations):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                for each in servers.values():
                    be_quiet(each)  # shipping what another variant has logged would be charged to this one
                server = servers[name]
                load = figures(server, lambda: generator(server.target, _CONNECTIONS, plan.seconds))  # noqa: B023  # called at once
                found[name].append(load)
                say(f"features, alternation {number + 1}, {name}: {load.load.rate:,.0f}/s")
    return Features(found, absent)


def _variants() -> tuple[dict[str, Candidate], dict[str, str]]:
    shapes = {FULL: Shape(), ONE_VERSION: Shape(versions=1), THREE_MODELS: Shape(models=3)}
    absent = {}
    if can_leave_out_the_log():
        shapes[WITHOUT_THE_LOG] = Shape(settings={WITHOUT_LOG: "false"})
    else:
        absent[WITHOUT_THE_LOG] = f"this data plane has no setting SWITCHYARD_{WITHOUT_LOG.upper()}"
    return {name: switchyard(name, each) for name, each in shapes.items()}, absent
