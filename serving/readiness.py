"""Whether an HTTP process can answer predictions now, found out by asking its workers."""

from typing import Any

from serving.catalogue import Catalogue
from serving.channel import version_key
from serving.dispatch import Dispatcher
from serving.errors import NotReady

PING_DEADLINE = 0.8
"""Seconds a worker has to answer: under the 1 s that probes wait by default, so that they get our answer."""


class Readiness:
    """Of one HTTP process."""

    def __init__(self, catalogue: Catalogue, dispatcher: Dispatcher) -> None:
        self._catalogue = catalogue
        self._dispatcher = dispatcher

    async def check(self) -> None:
        """Return once a worker has answered just now and some model can be served. Raises NotReady."""
        if not await self._dispatcher.ping(PING_DEADLINE):
            raise NotReady("no worker answers")
        if self._catalogue.generation is None:
            raise NotReady("it is not known yet which models are served")
        routed = [name for name, model in self._catalogue.models.items() if model.splitter is not None]
        missing = [name for name in routed if self._missing(name)]
        # One model that cannot be served is no reason to take the others out of service.
        if routed and len(missing) == len(routed):
            raise NotReady(f"no model is loaded yet, of {', '.join(sorted(missing))}")

    def described(self) -> dict[str, Any]:
        """Workers and models, as the answer to a probe shows them."""
        models = [
            {"model_id": name, "ready": not self._missing(name), "versions": sorted(model.versions)}
            for name, model in sorted(self._catalogue.models.items())
        ]
        return {"status": "ready", "workers": self._dispatcher.workers(), "models": models}

    def _missing(self, model_id: str) -> list[str]:
        """The routed versions of a model that no worker holds."""
        weights = self._catalogue.models[model_id].routes
        return [each.version for each in weights if not self._dispatcher.held(version_key(model_id, each.version))]
