"""What should be served, as the database or a snapshot says, and what a replica says of it in return. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.contracts import ModelServingConfig
from serving.routing import Route, RoutingTable

Key = tuple[str, str]
"""Model and version."""


@dataclass(frozen=True)
class WantedVersion:
    """A version that every worker should hold, because it is routed or because the control plane asks for it."""

    model_id: str
    version: str
    digest: str
    signature: dict[str, Any] | None
    attempt: int = 1  # 1 too for a version that is routed and was never asked for
    routed: bool = False  # has a route, though its weight may be 0
    pinned: bool = False
    wanted_at: float = 0.0  # seconds since 1970

    @property
    def key(self) -> Key:
        """Model and version."""
        return self.model_id, self.version

    @property
    def protected(self) -> bool:
        """Whether it stays loaded whatever memory it takes."""
        return self.routed or self.pinned


@dataclass(frozen=True)
class DesiredModel:
    """How one model should be served."""

    revision: int  # of its routes; 0 before the first
    config: ModelServingConfig
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class DesiredState:
    """Everything that should be, of one generation."""

    generation: int
    models: Mapping[str, DesiredModel]
    versions: Mapping[Key, WantedVersion]
    problems: tuple[str, ...] = ()  # what stands in the database and cannot be followed, a sentence each

    @classmethod
    def from_table(cls, table: RoutingTable) -> "DesiredState":
        """What a snapshot knows of it: good enough to serve by, not to unload by."""
        models = {name: DesiredModel(each.revision, each.config, each.routes) for name, each in table.models.items()}
        versions = {}
        for name, model in table.models.items():
            routed = {route.version for route in model.routes}
            for version, entry in model.versions.items():
                wanted = WantedVersion(name, version, entry.digest, entry.signature, routed=version in routed)
                versions[wanted.key] = wanted
        return cls(table.generation, models, versions)


NOTHING_DESIRED = DesiredState(0, {}, {})
"""Before the first table."""


@dataclass(frozen=True)
class VersionReport:
    """What a replica made of one version."""

    state: str  # loading, ready, failed or evicted
    attempt: int  # of the desired version: what this is about
    reason: str | None = None  # why failed or evicted
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`digest`; when ready all of Held, and timings by worker; else `held`, where it can be asked all the same."""
