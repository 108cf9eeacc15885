"""One fake for each Protocol whose real thing is slow or remote. tests/contracts holds each against the real one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from control_plane.errors import RegistryRefused, RegistryUnreachable, VersionLost
from control_plane.registry import RegistryVersion, VersionFacts


class FakeRegistry:
    """A registry in memory that behaves as MLflow's does."""

    def __init__(self) -> None:
        self.is_down = False
        self._versions: dict[str, dict[str, RegistryVersion]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._files: dict[str, dict[str, bytes]] = {}
        self._numbers: dict[str, int] = {}
        self._registered = 0

    # What a person does in MLflow.

    def register(self, model_id: str, files: dict[str, bytes] | None = None) -> str:
        """A new version; returns its number."""
        versions = self._versions.setdefault(model_id, {})
        self._numbers[model_id] = self._numbers.get(model_id, 0) + 1
        number = str(self._numbers[model_id])
        self._registered += 1
        identity = f"models:/m-{self._registered:032x}"
        created = datetime(2013, 4, 1, tzinfo=UTC) + timedelta(seconds=self._registered)
        versions[number] = RegistryVersion(model_id, number, identity, "run", {}, "", True, created)
        self._files[identity] = files or {"MLmodel": b"flavors: {}\n", "model.pkl": identity.encode()}
        return number

    def delete_version(self, model_id: str, version: str) -> None:
        """Its aliases go with it, without a word."""
        del self._versions[model_id][version]
        aliases = self._aliases.get(model_id, {})
        self._aliases[model_id] = {alias: each for alias, each in aliases.items() if each != version}

    def delete_model(self, model_id: str) -> None:
        """With all versions; made again, it counts from one."""
        for held in (self._versions, self._aliases, self._numbers):
            held.pop(model_id, None)

    def delete_files(self, model_id: str, version: str) -> None:
        """As `mlflow gc` does: the version stays listed."""
        del self._files[self._versions[model_id][version].identity]

    # What we ask of it.

    @property
    def address(self) -> str:
        return "fake://registry"

    def ping(self) -> str:
        self._answer()
        return "fake"

    def models(self) -> dict[str, dict[str, str]]:
        self._answer()
        return {model_id: dict(self._aliases.get(model_id, {})) for model_id in self._versions}

    def versions(self, model_id: str) -> list[RegistryVersion] | None:
        self._answer()
        if model_id not in self._versions:
            return None
        return sorted(self._versions[model_id].values(), key=lambda each: int(each.version), reverse=True)

    def aliases(self, model_id: str) -> dict[str, str]:
        self._answer()
        return dict(self._aliases.get(model_id, {}))

    def facts(self, version: RegistryVersion) -> VersionFacts:
        self._answer()
        lost = version.identity not in self._files
        return VersionFacts({"brier": 0.15}, None if lost else {"inputs": []}, None if lost else 10, "ada", lost)

    def download(self, version: RegistryVersion, folder: Path) -> None:
        self._answer()
        if version.identity not in self._files:
            raise VersionLost(version.model_id, version.version, "No such artifact")
        for name, content in self._files[version.identity].items():
            (folder / name).write_bytes(content)

    def set_alias(self, model_id: str, alias: str, version: str) -> None:
        self._require(model_id, version)
        if alias.lower() == "latest":
            raise RegistryRefused(self.address, f"'{alias}' alias name (case insensitive) is reserved.")
        self._aliases.setdefault(model_id, {})[alias] = version

    def delete_alias(self, model_id: str, alias: str) -> None:
        self._answer()
        self._aliases.get(model_id, {}).pop(alias, None)

    def set_tag(self, model_id: str, version: str, key: str, value: str) -> None:
        self._require(model_id, version)
        self._versions[model_id][version].tags[key] = value

    def _require(self, model_id: str, version: str) -> None:
        self._answer()
        if version not in self._versions.get(model_id, {}):
            raise RegistryRefused(self.address, f"Model Version (name={model_id}, version={version}) not found")

    def _answer(self) -> None:
        if self.is_down:
            raise RegistryUnreachable(self.address, "connection refused")
