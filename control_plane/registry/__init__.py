"""Model versions: what MLflow knows of them, what we keep of them, which of them an alias means."""

from control_plane.registry.gateway import Registry, RegistryVersion, VersionFacts
from control_plane.registry.listing import Listing, ModelSummary, Version, VersionState
from control_plane.registry.projection import AliasMove
from control_plane.registry.versions import KeptVersion, VersionManager

__all__ = [
    "AliasMove",
    "KeptVersion",
    "Listing",
    "ModelSummary",
    "Registry",
    "RegistryVersion",
    "Version",
    "VersionFacts",
    "VersionManager",
    "VersionState",
]
