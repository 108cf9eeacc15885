"""The models as an HTTP process serves them now: made of the agent's table, kept across tables where nothing changed."""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property

from serving.channel import version_key
from serving.contracts import ModelServingConfig
from serving.errors import ModelNotFound, NotReady, TooManyRequests, VersionNotLoaded
from serving.input_schema import InputSchema
from serving.routing import ModelEntry, Route, RoutingTable, TrafficSplitter, VersionEntry

_RATE_WINDOW = 0.5


class Admission:
    """How many calls of one model are under way, and how fast they end."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.under_way = 0
        self._ended = 0
        self._since = time.monotonic()
        self._rate = 0.0

    def enter(self, model_id: str) -> None:
        """One call more.

        Raises:
            TooManyRequests: the limit is reached; says when there will be room.
        """
        self.check(model_id)
        self.under_way += 1

    def check(self, model_id: str) -> None:
        """Raise what `enter` would raise now."""
        if self.under_way >= self.limit:
            raise TooManyRequests(model_id, self.limit, self.retry_after())

    def leave(self) -> None:
        """One call less: a worker has answered it, also when that was too late for its client."""
        self.under_way -= 1
        self._ended += 1
        now = time.monotonic()
        if now - self._since >= _RATE_WINDOW:
            current = self._ended / (now - self._since)
            self._rate = (self._rate + current) / 2 if self._rate else current
            self._ended, self._since = 0, now

    def retry_after(self) -> int:
        """Whole seconds, 1 to 60, until what is under way now has ended at the pace of late."""
        return min(60, max(1, math.ceil(self.under_way / self._rate))) if self._rate else 1


@dataclass
class ServedVersion:
    """A version that requests may be put to."""

    model_id: str
    version: str
    entry: VersionEntry

    @cached_property
    def key(self) -> bytes:
        """By which workers know it."""
        return version_key(self.model_id, self.version)

    @cached_property
    def schema(self) -> InputSchema:
        """Compiled at the first request.

        Raises:
            SignatureNotSupported: never for a version that was promoted, where this was checked.
        """
        return InputSchema.compile(self.entry.signature)


@dataclass
class ServedModel:
    """A model with its routes, in force together."""

    model_id: str
    revision: int
    config: ModelServingConfig
    routes: tuple[Route, ...]
    versions: dict[str, ServedVersion]
    splitter: TrafficSplitter | None
    admission: Admission

    def choose(self, unit: str) -> ServedVersion:
        """The version that answers this unit.

        Raises:
            NotReady: nothing of it is routed, or not known here yet.
        """
        if self.splitter is None:
            raise NotReady(f"no version of model '{self.model_id}' has any traffic; promote one")
        version = self.versions.get(self.splitter.choose(unit))
        if version is None:
            raise NotReady("the version to answer is not known here yet")
        return version

    def named(self, version: str) -> ServedVersion:
        """A version by its number, routed or not.

        Raises:
            VersionNotLoaded: it is not here; names those that are.
        """
        if version not in self.versions:
            raise VersionNotLoaded(self.model_id, version, sorted(self.versions, key=_by_number))
        return self.versions[version]


@dataclass
class Catalogue:
    """Every model that this process has been told of."""

    generation: int | None = None  # of the table in force; None before the first
    models: dict[str, ServedModel] = field(default_factory=dict)

    def apply(self, table: RoutingTable) -> None:
        """Serve by this table from now on. Compiled schemas and counts of what is under way stay."""
        self.models = {name: self._served(name, entry) for name, entry in table.models.items()}
        self.generation = table.generation

    def get(self, model_id: str) -> ServedModel:
        """A model.

        Raises:
            NotReady: no table has come yet, so nothing is known of any model.
            ModelNotFound: naming those that are served.
        """
        model = self.models.get(model_id)
        if model is not None:
            return model
        if self.generation is None:
            raise NotReady("it is not known yet which models are served")
        raise ModelNotFound(model_id, sorted(self.models))

    def _served(self, model_id: str, entry: ModelEntry) -> ServedModel:
        before = self.models.get(model_id)
        admission = before.admission if before else Admission(entry.config.max_concurrent_requests)
        admission.limit = entry.config.max_concurrent_requests
        versions = {number: _version(before, model_id, number, each) for number, each in entry.versions.items()}
        splitter = TrafficSplitter(entry.routes, model_id) if entry.routes else None
        return ServedModel(model_id, entry.revision, entry.config, entry.routes, versions, splitter, admission)


def _version(before: ServedModel | None, model_id: str, version: str, entry: VersionEntry) -> ServedVersion:
    known = before.versions.get(version) if before else None
    return known if known and known.entry == entry else ServedVersion(model_id, version, entry)


def _by_number(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdecimal() else (0, version)
