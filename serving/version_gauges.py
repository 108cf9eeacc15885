"""This HTTP process's metrics of versions that no request keeps: slots dealt anew, and what is under way."""

import asyncio

from serving.catalogue import Catalogue
from serving.model_metrics import SlotPen

_EVERY = 0.5


class VersionGauges:
    """Start it inside the running event loop, and it goes on as long as that."""

    def __init__(self, catalogue: Catalogue, pen: SlotPen) -> None:
        self._catalogue = catalogue
        self._pen = pen

    @classmethod
    def started(cls, catalogue: Catalogue, pen: SlotPen) -> "VersionGauges":
        """One that says twice a second how many calls of each model are under way.

        Not each request does: it would cost each of them, and a version that gets none any more would keep the number of
        its last one.
        """
        gauges = cls(catalogue, pen)
        gauges._tick()
        return gauges

    def follow(self) -> None:
        """Another table is in force."""
        versions = [version for model in self._catalogue.models.values() for version in model.versions.values()]
        self._pen.deal({each.entry.slot: (each.model_id, each.version) for each in versions})
        self._say_under_way()

    def _tick(self) -> None:
        self._say_under_way()
        asyncio.get_running_loop().call_later(_EVERY, self._tick)

    def _say_under_way(self) -> None:
        for model in self._catalogue.models.values():
            for version in model.versions.values():
                self._pen.under_way(version.entry.slot, model.admission.under_way)
