"""What the whole data plane takes while nobody asks it anything."""

import time

from benchmarks.serving.measure import Generator, cpu_seconds, pss, ready
from benchmarks.serving.models import BenchModel
from benchmarks.serving.ours import switchyard
from benchmarks.serving.results import Idle, Plan, Say

_UNTIL_IDLE = 8.0  # the last payloads wait 5 s for company before they are stored


def run_idle(model: BenchModel, plan: Plan, generator: Generator, say: Say) -> Idle:
    """CPU and memory of ours after it was loaded and used."""
    with ready(switchyard(), model, generator) as server:
        time.sleep(_UNTIL_IDLE)
        began, used = time.monotonic(), cpu_seconds(server)
        time.sleep(plan.idle_seconds)
        seconds = time.monotonic() - began
        found = Idle(seconds, (cpu_seconds(server) - used) / seconds, pss(server), len(server.family()))
    say(f"idle: {found.cpu:.2%} of a core, {(found.pss or 0) / 2**20:.0f} MiB in {found.processes} processes")
    return found
