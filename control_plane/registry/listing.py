"""What a listing of models and versions shows, and how the registry's view and ours become one. Pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from control_plane.registry.gateway import RegistryVersion, VersionFacts
from control_plane.replicas import ModelStatus
from serving.routing import Route
from serving.store import ModelVersionRow

Item = TypeVar("Item")

NO_FACTS = VersionFacts(metrics={}, signature=None, size_bytes=None, created_by=None, lost=False)
"""What is known of a version that the registry does not list."""


class VersionState(StrEnum):
    """Where a version stands; each value with the sentence that explains it."""

    REGISTERED = "registered"  # the registry has it; nothing of it is kept here yet
    INCOMPLETE = "incomplete"  # its registration has not ended, or failed
    LOST = "lost"  # the registry lists it, but its files are gone and there is no copy here
    KEPT = "kept"  # our own verified copy is here, and the registry has it too
    REMOVED = "removed"  # gone from the registry; our copy still serves and can be rolled back to
    REPLACED = "replaced"  # the model was deleted and made again in the registry; ours is the version that was recorded
    SERVING = "serving"  # it has a share of the traffic


@dataclass(frozen=True)
class Version:
    """One version, as the API shows it."""

    version: str
    aliases: list[str]
    tags: dict[str, str]
    metrics: dict[str, float | None]
    signature: dict[str, Any] | None
    size_bytes: int | None
    digest: str | None  # sha256 of our copy; None while there is none
    created_at: datetime
    created_by: str | None
    state: VersionState
    weight: float  # share of the traffic, 0 to 1
    run_id: str | None
    description: str


@dataclass(frozen=True)
class ModelSummary:
    """One model, as the list shows it."""

    model_id: str
    version: str | None  # the one with the largest share
    status: ModelStatus
    routes: list[Route]
    aliases: dict[str, str]


@dataclass(frozen=True)
class Listing(Generic[Item]):
    """What could be listed, and why there may be more."""

    items: list[Item]
    unavailable: dict[str, str]  # source -> why it could not be asked
    next: str | None = None  # where the following page starts; None on the last


def by_version(aliases: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for alias, version in sorted(aliases.items()):
        found.setdefault(version, []).append(alias)
    return found


def summarise(model_id: str, routes: list[Route], aliases: dict[str, str], status: ModelStatus) -> ModelSummary:
    return ModelSummary(model_id, routes[0].version if routes else None, status, routes, aliases)


def merge(
    registered: RegistryVersion | None,
    facts: VersionFacts,
    kept: ModelVersionRow | None,
    aliases: dict[str, list[str]],
    weight: float,
    *,
    asked: bool,
) -> Version:
    """One version out of what the registry and our database say; ours wins, since it is what was proven.

    `asked`: whether the registry answered; if not, its silence says nothing about the version.
    """
    source = kept or registered
    if source is None:
        raise ValueError("a version is known to the registry, to us, or to both")
    return Version(
        version=source.version,
        aliases=aliases.get(source.version, []),
        tags=registered.tags if registered else source.tags,
        metrics=facts.metrics or (kept.metrics if kept else {}),
        signature=kept.signature if kept else facts.signature,
        size_bytes=kept.size_bytes if kept else facts.size_bytes,
        digest=kept.digest if kept else None,
        created_at=source.created_at,
        created_by=kept.created_by if kept else facts.created_by,
        state=_state(registered, facts, kept, weight, asked=asked),
        weight=weight,
        run_id=source.run_id,
        description=registered.description if registered else "",
    )


def _state(
    registered: RegistryVersion | None,
    facts: VersionFacts,
    kept: ModelVersionRow | None,
    weight: float,
    *,
    asked: bool,
) -> VersionState:
    if kept is None:
        if registered and not registered.complete:
            return VersionState.INCOMPLETE
        return VersionState.LOST if facts.lost else VersionState.REGISTERED
    if weight > 0:
        return VersionState.SERVING
    if registered is None:
        return VersionState.REMOVED if asked else VersionState.KEPT
    return VersionState.KEPT if registered.identity == kept.identity else VersionState.REPLACED
