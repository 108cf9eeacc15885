"""Who should answer: routes, what makes them valid, and the splitter that deals requests out by them. Pure."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from serving.contracts import ModelServingConfig


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


class TrafficSplitter:
    """Deals units out to versions by their weights: the same unit always to the same version, in every process.

    The position of a unit is GrowthBook's hash of version 2: `fnv1a32(str(fnv1a32(salt + unit))) % 10000 / 10000`.
    Routes lie side by side on [0, 1), newest version first, so that a growing share of a new version only adds units
    to it and moves nobody back.
    """

    def __init__(self, routes: Sequence[Route], salt: str) -> None:
        """`routes` are valid (see `why_invalid`); `salt` keeps the units of one model apart from another's."""
        shares = sorted((each for each in routes if each.weight > 0), key=_newest_first)
        self._bounds = list(accumulate(each.weight for each in shares))
        self._versions = [each.version for each in shares]
        # FNV takes byte after byte, so what the salt makes of it is the same for every unit.
        self._seed = _fnv1a32(salt.encode())

    def choose(self, unit: str) -> str:
        """The version for this unit."""
        if len(self._versions) == 1:
            return self._versions[0]
        at = bisect_right(self._bounds, self.position(unit))
        return self._versions[min(at, len(self._versions) - 1)]  # weights may add up to a hair less than one

    def position(self, unit: str) -> float:
        """Where the unit lies, from 0 to under 1, in steps of one in ten thousand."""
        inner = _fnv1a32(unit.encode(), self._seed)
        return _fnv1a32(str(inner).encode()) % 10_000 / 10_000


def _newest_first(route: Route) -> tuple[int, str]:
    return (-int(route.version), "") if route.version.isdecimal() else (0, route.version)


def _fnv1a32(data: bytes, state: int = 0x811C9DC5) -> int:
    """http://www.isthe.com/chongo/tech/comp/fnv/; `state` goes on from an earlier part."""
    for byte in data:
        state = (state ^ byte) * 0x01000193 & 0xFFFFFFFF
    return state


@dataclass(frozen=True)
class VersionEntry:
    """What an HTTP process has to know of a version."""

    digest: str
    signature: dict[str, Any] | None
    slot: int  # where its metrics are counted


@dataclass(frozen=True)
class ModelEntry:
    """How one model is served: its routes are in force together with this configuration."""

    revision: int
    config: ModelServingConfig
    routes: tuple[Route, ...]
    versions: dict[str, VersionEntry]


@dataclass(frozen=True)
class RoutingTable:
    """Everything that is needed to route, of one generation."""

    generation: int
    models: dict[str, ModelEntry]

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "RoutingTable":
        """From what the agent sends, or from its snapshot.

        Raises:
            ValueError, KeyError, TypeError: it is no table of ours.
        """
        return cls(table["generation"], {name: _model_entry(each) for name, each in table["models"].items()})


def _model_entry(entry: Mapping[str, Any]) -> ModelEntry:
    return ModelEntry(
        revision=entry["revision"],
        config=ModelServingConfig(**entry["config"]),
        routes=tuple(Route(each["version"], each["weight"]) for each in entry["routes"]),
        versions={
            version: VersionEntry(each["digest"], each["signature"], each["slot"])
            for version, each in entry["versions"].items()
        },
    )
