"""Who should answer: the routes of a model, and what makes them valid. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """One version's share of a model's traffic, from 0 to 1."""

    version: str
    weight: float


def why_invalid(routes: Sequence[Route]) -> str | None:
    """What is wrong with these routes, in words; None when they can serve."""
    if not routes:
        return "there must be at least one route; a model that serves is never left without one"
    versions = [route.version for route in routes]
    if len(set(versions)) < len(versions):
        return f"each version may stand there once; given: {', '.join(versions)}"
    if not all(math.isfinite(route.weight) and 0 <= route.weight <= 1 for route in routes):
        return f"each weight must lie between 0 and 1; given: {_weights(routes)}"
    if not math.isclose(sum(route.weight for route in routes), 1.0, abs_tol=1e-9):
        return f"the weights must add up to 1; given: {_weights(routes)}"
    return None


def _weights(routes: Sequence[Route]) -> str:
    return ", ".join(f"{route.version}={route.weight:g}" for route in routes)
