"""VersionManager: every version of every model, from the registry and from what we keep ourselves."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlmodel import select

from control_plane.errors import (
    AliasNotFound,
    InvalidVersionReference,
    RegistryError,
    RegistryUnreachable,
    VersionNotFound,
    VersionReplaced,
)
from control_plane.registry.gateway import Registry, RegistryVersion
from control_plane.registry.listing import NO_FACTS, Listing, ModelSummary, Version, by_version, merge, summarise
from control_plane.registry.projection import AliasMove, find_alias_moves, project_aliases
from control_plane.replicas import ModelStatus
from control_plane.storage.aliases import pending_aliases, wanted_aliases
from control_plane.storage.installation import read_installation
from control_plane.storage.routes import read_routes
from control_plane.storage.statuses import read_statuses
from serving.artifacts import Artifact, ArtifactStore
from serving.errors import ArtifactDamaged, ArtifactMissing, ModelNotFound
from serving.logs import logger
from serving.store import Database, ModelVersionRow

log = logger(__name__)

Key = TypeVar("Key")
Answer = TypeVar("Answer")

DIGEST_TAG = "switchyard.digest"


@dataclass(frozen=True)
class KeptVersion:
    """A version whose bytes are in our own store and were compared just now."""

    model_id: str
    version: str
    digest: str
    folder: Path
    size_bytes: int


class VersionManager:
    """Lists, resolves and keeps versions. Our database says what serves; the registry says what could."""

    def __init__(self, database: Database, registry: Registry, artifacts: ArtifactStore) -> None:
        self._database = database
        self._registry = registry
        self._artifacts = artifacts

    def models(self) -> Listing[ModelSummary]:
        """Every model that is registered or was ever kept, with what it serves.

        With the registry down the list holds what we know ourselves and says so.

        Raises:
            DatabaseUnavailable: it cannot be known what serves.
        """
        with self._database.reading() as session:
            routes = read_routes(session)
            kept = set(session.exec(select(ModelVersionRow.model_id)))
            ours = wanted_aliases(session)
            statuses = read_statuses(session, routes)
        try:
            shown, unavailable = self._registry.models(), {}
        except RegistryUnreachable as error:
            shown, unavailable = {}, {"registry": error.detail}
        names = sorted(kept | shown.keys())
        summaries = [
            summarise(
                name,
                routes.get(name, []),
                _overlaid(shown.get(name, {}), ours.get(name, {})),
                statuses.get(name, ModelStatus.UNSERVED),
            )
            for name in names
        ]
        return Listing(summaries, unavailable)

    def versions(self, model_id: str, *, limit: int = 100, before: str | None = None) -> Listing[Version]:
        """The newest `limit` versions of a model, newest first; with `before`, of those older than that version.

        Raises:
            ModelNotFound: neither the registry nor our database knows it.
            RegistryUnreachable: our database does not know it, and the registry cannot be asked.
            DatabaseUnavailable: it cannot be known what serves.
        """
        kept, weights, ours = self._known_here(model_id)
        try:
            found = self._registry.versions(model_id)
            shown = self._registry.aliases(model_id)
            page = _page({each.version for each in found or []} | kept.keys(), limit, before)
            facts = _together(self._registry.facts, [each for each in found or [] if each.version in page])
            unavailable = {}
        except RegistryUnreachable as error:
            if not kept:
                raise
            found, shown, facts, unavailable = [], {}, {}, {"registry": error.detail}
            page = _page(kept.keys(), limit, before)
        if found is None and not kept:
            raise ModelNotFound(model_id, [each.model_id for each in self.models().items])
        registered = {each.version: each for each in found or []}
        aliases = by_version(_overlaid(shown, ours))
        items = [
            merge(
                registered.get(number),
                facts.get(number, NO_FACTS),
                kept.get(number),
                aliases,
                weights.get(number, 0.0),
                asked=not unavailable,
            )
            for number in page
        ]
        more = len(_page(registered.keys() | kept.keys(), 1, page[-1])) > 0 if page else False
        return Listing(items, unavailable, page[-1] if more else None)

    def resolve(self, model_id: str, reference: str) -> str:
        """The version number that a number or alias means now.

        For what we route our own database decides, not MLflow's alias, which may be moved by anybody at any time.

        Raises:
            VersionNotFound, AliasNotFound, ModelNotFound: naming what is known.
            InvalidVersionReference: neither a number nor a name.
            RegistryUnreachable: it is not known here, and the registry cannot be asked.
        """
        reference = reference.strip()
        if not reference or not reference.replace("-", "").replace("_", "").isalnum():
            raise InvalidVersionReference(reference)
        kept, _, ours = self._known_here(model_id)
        if reference.isdecimal():
            return self._resolve_number(model_id, str(int(reference)), kept.keys())
        if target := ours.get(reference):
            return target
        shown = _overlaid(self._registry.aliases(model_id), ours)
        if reference not in shown:
            if self._registry.versions(model_id) is None and not kept:
                raise ModelNotFound(model_id, [each.model_id for each in self.models().items])
            raise AliasNotFound(model_id, reference, sorted(shown))
        return shown[reference]

    def alias_in_registry(self, model_id: str, alias: str) -> str | None:
        """What MLflow shows under this alias, whoever set it; None for none, for a number, or when nobody can tell.

        None too while it does not show yet what we want there: that is nobody's move.

        Raises:
            DatabaseUnavailable: it cannot be known what we want.
        """
        if alias.isdecimal():
            return None
        with self._database.reading() as session:
            if any((each.model_id, each.alias) == (model_id, alias) for each in pending_aliases(session)):
                return None
        try:
            return self._registry.aliases(model_id).get(alias)
        except RegistryError:
            return None

    def prepare(self, model_id: str, version: str) -> KeptVersion:
        """Make sure that our own verified copy of a version is here; the first time, copy it from the registry.

        From the first time on its sha256 is recorded, and other bytes under the same number are refused.

        Raises:
            VersionNotFound, ModelNotFound: naming what is known.
            VersionReplaced: the number means another version in the registry now.
            VersionLost: the registry has no files of it.
            ArtifactDamaged: what the registry delivers now is not what was recorded.
            RegistryUnreachable: it would have to be copied, and the registry cannot be asked.
        """
        recorded = self._recorded(model_id, version)
        if recorded is None:
            return self._keep(self._registered(model_id, version))
        self._refuse_replaced(recorded)
        try:
            artifact = self._artifacts.verify(recorded.digest)
        except (ArtifactMissing, ArtifactDamaged):
            artifact = self._fetch_again(recorded)
        return _kept(recorded, artifact)

    def project_aliases(self) -> int:
        """Write to MLflow the aliases it does not show yet; see `projection.project_aliases`."""
        return project_aliases(self._database, self._registry)

    def alias_moves(self) -> list[AliasMove]:
        """Aliases that a person moved in MLflow; see `projection.find_alias_moves`."""
        return find_alias_moves(self._database, self._registry)

    def _known_here(self, model_id: str) -> tuple[dict[str, ModelVersionRow], dict[str, float], dict[str, str | None]]:
        """Kept versions, weights and aliases of a model, as of one moment."""
        with self._database.reading() as session:
            rows = session.exec(select(ModelVersionRow).where(ModelVersionRow.model_id == model_id))
            kept = {row.version: row for row in rows}
            weights = {each.version: each.weight for each in read_routes(session, model_id).get(model_id, [])}
            return kept, weights, wanted_aliases(session).get(model_id, {})

    def _resolve_number(self, model_id: str, number: str, kept: Iterable[str]) -> str:
        return number if number in kept else self._registered(model_id, number).version

    def _registered(self, model_id: str, version: str) -> RegistryVersion:
        found = self._registry.versions(model_id)
        if found is None:
            raise ModelNotFound(model_id, [each.model_id for each in self.models().items])
        for each in found:
            if each.version == version:
                return each
        raise VersionNotFound(model_id, version, [each.version for each in reversed(found)])

    def _recorded(self, model_id: str, version: str) -> ModelVersionRow | None:
        with self._database.reading() as session:
            return session.get(ModelVersionRow, (model_id, version))

    def _refuse_replaced(self, recorded: ModelVersionRow) -> None:
        """A model that was deleted in MLflow and made again counts its versions from one."""
        try:
            found = self._registry.versions(recorded.model_id) or []
        except RegistryUnreachable:
            return  # our copy is what counts, and its digest is checked
        for each in found:
            if each.version == recorded.version and each.identity != recorded.identity:
                raise VersionReplaced(recorded.model_id, recorded.version, recorded.identity, each.identity)

    def _keep(self, source: RegistryVersion) -> KeptVersion:
        facts = self._registry.facts(source)
        artifact = self._copy(source)
        row = ModelVersionRow(
            model_id=source.model_id,
            version=source.version,
            digest=artifact.digest,
            size_bytes=artifact.size_bytes,
            identity=source.identity,
            tags=source.tags,
            metrics=facts.metrics,
            signature=facts.signature,
            run_id=source.run_id,
            created_at=source.created_at,
            created_by=facts.created_by,
            kept_at=datetime.now(UTC),
        )
        row = self._record(row)
        self._tag(row)
        return _kept(row, artifact)

    def _copy(self, source: RegistryVersion) -> Artifact:
        with self._database.reading() as session:
            owner = read_installation(session)
        return self._artifacts.put(lambda folder: self._registry.download(source, folder), owner)

    def _record(self, row: ModelVersionRow) -> ModelVersionRow:
        """The row as it stands afterwards: who records a version first decides what it is."""
        with self._database.writing() as session:
            first = session.get(ModelVersionRow, (row.model_id, row.version))
            if first is None:
                session.add(row)
                return row
            if first.identity != row.identity:
                raise VersionReplaced(row.model_id, row.version, first.identity, row.identity)
            if first.digest != row.digest:
                raise ArtifactDamaged(first.digest, f"the registry delivers other bytes ({row.digest}) by now")
            return first

    def _tag(self, row: ModelVersionRow) -> None:
        """For people who look at MLflow. Nothing depends on it, so a registry that went away meanwhile is no failure."""
        try:
            self._registry.set_tag(row.model_id, row.version, DIGEST_TAG, row.digest)
        except RegistryError as error:
            log.warning("digest not tagged", model_id=row.model_id, version=row.version, problem=error.detail)

    def _fetch_again(self, recorded: ModelVersionRow) -> Artifact:
        """Our copy is gone or damaged: the registry's counts if, and only if, it is the same to the byte."""
        source = self._registered(recorded.model_id, recorded.version)
        artifact = self._copy(source)
        if artifact.digest != recorded.digest:
            raise ArtifactDamaged(
                recorded.digest, f"our copy is not usable, and the registry delivers other bytes ({artifact.digest})"
            )
        return artifact


def _overlaid(shown: Mapping[str, str], ours: Mapping[str, str | None]) -> dict[str, str]:
    """The aliases as they are to be: ours decide, also that one should not exist, whatever MLflow still shows."""
    return {alias: version for alias, version in {**shown, **ours}.items() if version is not None}


def _page(numbers: Iterable[str], limit: int, before: str | None) -> list[str]:
    """Version numbers, newest first, starting below `before`."""
    ordered = sorted(numbers, key=int, reverse=True)
    return [number for number in ordered if before is None or int(number) < int(before)][:limit]


def _together(ask: Callable[[Key], Answer], keys: Sequence[Key]) -> dict[Any, Answer]:
    """One answer for each key, a few at a time: a registry answers in some 6 ms, and versions come in hundreds.

    A version is keyed by its number, a model by its name.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(ask, keys))
    return {getattr(key, "version", key): answer for key, answer in zip(keys, answers, strict=True)}


def _kept(row: ModelVersionRow, artifact: Artifact) -> KeptVersion:
    return KeptVersion(row.model_id, row.version, artifact.digest, artifact.folder, artifact.size_bytes)
