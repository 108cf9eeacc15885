"""How far the shipper falls behind while everything is saturated, and how long it needs at half load to catch up."""

import time

from benchmarks.serving.candidates import Running
from benchmarks.serving.load import Generation, OpenLoop
from benchmarks.serving.measure import Generator, be_quiet, ready
from benchmarks.serving.models import BenchModel
from benchmarks.serving.ours import switchyard
from benchmarks.serving.results import Lag, Plan, Say
from serving.spool import SpoolState, spool_state

GONE_BELOW = 1.0
"""Seconds: predictions younger than that wait for the next transaction, not because anything is late."""
SMALL_BELOW = 4 * 2**20
"""Bytes: payloads wait for each other for up to 5 s, so some always do."""

_CONNECTIONS = 32
_PATIENCE = 90.0
_POLL = 0.1


def run_lag(model: BenchModel, plan: Plan, generator: Generator, say: Say) -> Lag:
    """Saturate ours, look at what waits, then go on at half of the rate until what waited is in the database."""
    with ready(switchyard(), model, generator) as server:
        saturated = generator(server.target, _CONNECTIONS, plan.saturated_seconds)
        behind = _state(server)
        say(
            f"lag: {saturated.rate:,.0f}/s, then {behind.waiting_bytes / 2**20:.1f} MiB wait, {behind.oldest_seconds:.1f} s"
        )
        half = saturated.rate / 2
        gone, waited = _catch_up(server, half)
        be_quiet(server)
    say(f"lag at {half:,.0f}/s: {'not gone' if gone is None else 'gone'} after {waited:.1f} s")
    return Lag(saturated, behind.waiting_bytes, behind.oldest_seconds, half, gone, waited)


def is_gone(state: SpoolState) -> bool:
    """Whether nothing waits but what has just come, of predictions and of payloads."""
    return state.oldest_seconds < GONE_BELOW and state.waiting_bytes < SMALL_BELOW


def _catch_up(server: Running, rate: float) -> tuple[float | None, float]:
    began = time.monotonic()
    generation = Generation(server.target, _CONNECTIONS, _PATIENCE, OpenLoop(rate))
    try:
        while not generation.is_over:
            if is_gone(_state(server)):
                return time.monotonic() - began, time.monotonic() - began
            time.sleep(_POLL)
    finally:
        generation.end()
    return None, time.monotonic() - began


def _state(server: Running) -> SpoolState:
    if server.spool is None:
        raise LookupError("this server has no spool")
    return spool_state(server.spool)
