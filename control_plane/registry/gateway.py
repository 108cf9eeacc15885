"""What we ask of a model registry. MLflow answers it in production, a fake in the tests of what stands above."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RegistryVersion:
    """One registered version, as one cheap call tells it."""

    model_id: str
    version: str
    identity: str  # what the registry calls the files; a model deleted and made again counts from one
    run_id: str | None
    tags: dict[str, str]
    description: str
    complete: bool  # False while it is being registered, or when that failed
    created_at: datetime


@dataclass(frozen=True)
class VersionFacts:
    """What takes further calls to learn; each part is empty where the registry has lost it."""

    metrics: dict[str, float | None]  # None: it was logged, but is no finite number
    signature: dict[str, Any] | None  # {"inputs": [{"name", "type", "required"}], "outputs": [...], "params": [...]}
    size_bytes: int | None
    created_by: str | None
    lost: bool  # the record is there, the files are not


class Registry(Protocol):
    """Every call raises RegistryUnreachable within the configured time when there is no answer."""

    @property
    def address(self) -> str:
        """Where it is, without secrets."""
        ...

    def ping(self) -> str:
        """The registry's version, if it answers."""
        ...

    def models(self) -> dict[str, dict[str, str]]:
        """Every registered model with its aliases: name -> alias -> version."""
        ...

    def versions(self, model_id: str) -> list[RegistryVersion] | None:
        """Every version, newest first; None when there is no such model."""
        ...

    def aliases(self, model_id: str) -> dict[str, str]:
        """alias -> version; empty when there is no such model."""
        ...

    def facts(self, version: RegistryVersion) -> VersionFacts:
        """Metrics, signature, size and author."""
        ...

    def download(self, version: RegistryVersion, folder: Path) -> None:
        """Put the version's files into an empty folder, leaving nothing anywhere else.

        Raises:
            VersionLost: they are gone.
        """
        ...

    def set_alias(self, model_id: str, alias: str, version: str) -> None:
        """Let the alias mean this version from now on.

        Raises:
            RegistryRefused: the version does not exist, or the name is reserved.
        """
        ...

    def delete_alias(self, model_id: str, alias: str) -> None:
        """Remove the alias, if it is there."""
        ...

    def set_tag(self, model_id: str, version: str, key: str, value: str) -> None:
        """Tag a version.

        Raises:
            RegistryRefused: the version does not exist.
        """
        ...
