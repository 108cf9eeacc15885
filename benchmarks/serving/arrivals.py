"""Open loop: requests arrive at random (Poisson) at a share of what the closed loop has shown to be possible."""

from benchmarks.serving.candidates import Running
from benchmarks.serving.load import OpenLoop, run_closed, run_open
from benchmarks.serving.measure import figures, ready
from benchmarks.serving.models import BenchModel
from benchmarks.serving.ours import switchyard
from benchmarks.serving.results import OpenLoops, Plan, Say

SHARES = (0.25, 0.5, 0.75, 0.9)
CONNECTIONS = 256
_MAXIMUM_CONNECTIONS = (32, 128)


def run_open_loops(model: BenchModel, plan: Plan, say: Say) -> OpenLoops:
    """Ours on this model at each share of its maximum.

    The maximum is measured by the same generator, which takes its part of the same cores in both.
    """
    with ready(switchyard(), model, run_closed) as server:
        maximum = find_maximum(server, plan)
        found = {}
        for number, share in enumerate(SHARES):
            arrivals = OpenLoop(share * maximum, seed=number)
            each = figures(server, lambda: run_open(server.target, CONNECTIONS, plan.open_seconds, arrivals))  # noqa: B023  # called at once
            found[share] = each
            say(
                f"{model.name}, open loop at {share:.0%} of {maximum:,.0f}/s: "
                f"p50 {each.load.p50 * 1e3:.2f} ms, p99 {each.load.p99 * 1e3:.2f} ms, "
                f"generator late by {(each.load.generator_late or 0) * 1e3:.2f} ms (p99)"
            )
        return OpenLoops(model.title, maximum, found)


def find_maximum(server: Running, plan: Plan) -> float:
    """Requests/s of the closed loop by our own generator: the larger of 32 and 128 connections."""
    loads = [
        figures(server, lambda count=count: run_closed(server.target, count, plan.seconds)).load  # type: ignore[misc]
        for count in _MAXIMUM_CONNECTIONS
    ]
    return max(each.rate for each in loads)
