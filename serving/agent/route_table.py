"""The table that HTTP processes route by, made of what is desired and what the workers hold. Pure."""

from collections.abc import Collection, Mapping
from typing import Any

from serving.contracts import ModelServingConfig
from serving.desired import DesiredState, Key, WantedVersion
from serving.routing import Route

SLOTS = 256
"""Versions that have metrics of their own at once."""

Table = dict[str, Any]
"""As it travels: see `serving.routing.RoutingTable.from_json`."""


class Slots:
    """Deals out the numbers under which versions are counted. A version keeps its number as long as possible."""

    def __init__(self, dealt: Mapping[Key, int] | None = None) -> None:
        """`dealt`: from an earlier life, longest unused first."""
        self._dealt = {key: slot for key, slot in (dealt or {}).items() if 0 <= slot < SLOTS}

    @property
    def dealt(self) -> dict[Key, int]:
        """Every number that was ever dealt out and not taken back, longest unused first."""
        return dict(self._dealt)

    def of(self, keys: Collection[Key]) -> dict[Key, int]:
        """The number of each of these versions, which are in use now."""
        for key in sorted(keys):
            if key in self._dealt:
                self._dealt[key] = self._dealt.pop(key)  # to the end: it is in use
        for key in sorted(keys):
            if key not in self._dealt:
                self._dealt[key] = self._free(keys)
        return {key: self._dealt[key] for key in keys}

    def _free(self, in_use: Collection[Key]) -> int:
        taken = set(self._dealt.values())
        for slot in range(SLOTS):
            if slot not in taken:
                return slot
        unused = next((key for key in self._dealt if key not in in_use), None)
        # With more than SLOTS versions in use at once the rest share the last number.
        return SLOTS - 1 if unused is None else self._dealt.pop(unused)


def known_versions(
    desired: DesiredState, held: Collection[Key], before: Mapping[Key, WantedVersion]
) -> dict[Key, WantedVersion]:
    """Versions that requests may be put to: routed, or held by some worker.

    `before`: the answer of last time. What is wanted and was known stays so while a worker restarts, and what is
    wanted no more stays until no worker holds it.
    """
    known = {key: each for key, each in desired.versions.items() if each.routed or key in held or key in before}
    return {key: each for key, each in before.items() if key in held and key[0] in desired.models} | known


def build_table(
    desired: DesiredState,
    versions: Mapping[Key, WantedVersion],
    slots: Mapping[Key, int],
    configs: Mapping[str, ModelServingConfig],
    *,
    certain: bool = True,
) -> Table:
    """The table of these versions, ready to be written as JSON. `certain`: the database says so, not a snapshot of it."""
    models: dict[str, Any] = {
        model_id: {
            "revision": model.revision,
            "config": configs[model_id].model_dump(mode="json"),
            "routes": [{"version": route.version, "weight": route.weight} for route in model.routes],
            "versions": {},
        }
        for model_id, model in desired.models.items()
    }
    for key in sorted(versions):
        entry = {"digest": versions[key].digest, "signature": versions[key].signature, "slot": slots[key]}
        models[key[0]]["versions"][key[1]] = entry
    return {"generation": desired.generation, "certain": certain, "models": models}


def main_version(routes: Collection[Route]) -> str | None:
    """The version with the largest share, the first of equals; None without any route."""
    return max(routes, key=lambda route: route.weight).version if routes else None
