"""Examining a target before any replica is troubled with it."""

from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from control_plane.errors import AliasNotFound, InvalidVersionReference, VersionNotFound
from control_plane.registry import Version, VersionManager
from control_plane.rollback.gates import Check, compare_signatures, judge_metric
from control_plane.storage.configs import read_config
from control_plane.storage.routes import read_routes
from serving.contracts import ModelServingConfig
from serving.errors import DatabaseUnavailable, ModelNotFound, SignatureNotSupported, SwitchyardError
from serving.input_schema import InputSchema
from serving.store import Database, ModelVersionRow

NO_SUCH_TARGET = (ModelNotFound, VersionNotFound, AliasNotFound, InvalidVersionReference)
"""What is told to whoever asks, where it can be known at once, instead of being put on record."""


@dataclass(frozen=True)
class Examination:
    """What was found of a target."""

    target: str  # its number; as it was given, where it could not be looked up
    serves_already: bool
    checks: list[Check]
    elsewhere: str | None = None
    """In a sentence what the alias that was asked for is in MLflow, where it serves already and that is another one."""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return all(each.passed for each in self.checks)

    @property
    def reason(self) -> str:
        """What speaks against it; empty when nothing does."""
        return " ".join(each.detail for each in self.checks if not each.passed)

    def evidence(self) -> dict[str, Any]:
        """For the record."""
        return {"checks": [each.facts() for each in self.checks]}


def already_serves(found: Examination) -> str:
    """What is said when nothing needs to be done."""
    said = f"Version {found.target} already serves; nothing was changed."
    return f"{said} {found.elsewhere}" if found.elsewhere else said


class TargetChecks:
    """Examines targets: with their bytes for a change, without touching anything for a plan."""

    def __init__(self, database: Database, versions: VersionManager) -> None:
        self._database = database
        self._versions = versions

    def examine(self, model_id: str, reference: str, *, skip_gates: bool) -> Examination:
        """Look the target up, have its bytes kept and compared, judge its signature and metric.

        Raises:
            DatabaseUnavailable: nothing can be said about it; ask again.
        """
        return self._examine(model_id, reference, skip_gates=skip_gates, keep=True)

    def foresee(self, model_id: str, reference: str, *, skip_gates: bool) -> Examination:
        """The same as far as it goes without writing anything: a version that is not kept yet is not copied.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound, InvalidVersionReference: there is no such target.
            DatabaseUnavailable: nothing can be said about it; ask again.
        """
        return self._examine(model_id, reference, skip_gates=skip_gates, keep=False)

    def _examine(self, model_id: str, reference: str, *, skip_gates: bool, keep: bool) -> Examination:
        found = self._look_up(model_id, reference, on_record=keep)
        if not found.passed:
            return Examination(reference, serves_already=False, checks=[found])
        target = str(found.evidence["version"])
        situation = self._situation(model_id, target)
        if situation.serves_already:
            elsewhere = self._elsewhere(model_id, reference, target)
            return Examination(target, serves_already=True, checks=[found], elsewhere=elsewhere)
        bytes_, version = self._keep(model_id, target) if keep else self._foresee(model_id, target)
        checks = [found, bytes_]
        if version is not None:
            checks += _judge(version, situation, skip_gates=skip_gates)
        return Examination(target, serves_already=False, checks=checks)

    def _look_up(self, model_id: str, reference: str, *, on_record: bool) -> Check:
        try:
            version = self._versions.resolve(model_id, reference)
        except DatabaseUnavailable:
            raise
        except SwitchyardError as error:
            if isinstance(error, NO_SUCH_TARGET) and not on_record:
                raise  # whoever asks for a plan waits for the answer, and can be told as if asking for the change
            return _refused("target", error)
        return Check("target", passed=True, detail=f"It is version {version}.", evidence={"version": version})

    def _elsewhere(self, model_id: str, reference: str, target: str) -> str | None:
        shown = self._versions.alias_in_registry(model_id, reference)
        if shown is None or shown == target:
            return None
        return f"In MLflow '{reference}' is version {shown}: promote it by its number."

    def _keep(self, model_id: str, version: str) -> tuple[Check, "_Judged | None"]:
        try:
            kept = self._versions.prepare(model_id, version)
        except DatabaseUnavailable:
            raise
        except SwitchyardError as error:
            return _refused("digest", error), None
        with self._database.reading() as session:
            row = session.get_one(ModelVersionRow, (model_id, version))
        detail = "Every byte of our copy is what was recorded."
        return Check("digest", passed=True, detail=detail, evidence={"digest": kept.digest}), _Judged.of(row)

    def _foresee(self, model_id: str, version: str) -> tuple[Check, "_Judged | None"]:
        try:
            listed = self._versions.versions(model_id, limit=1, before=str(int(version) + 1)).items
        except DatabaseUnavailable:
            raise
        except SwitchyardError as error:
            return _refused("digest", error), None
        of_it = next((each for each in listed if each.version == version), None)
        if of_it is None:
            return _refused("digest", ModelNotFound(model_id, [])), None
        detail = "It is kept here." if of_it.digest else "It is not kept here yet: it will be copied first."
        return Check("digest", passed=True, detail=detail, evidence={"digest": of_it.digest}), _Judged.of(of_it)

    def _situation(self, model_id: str, target: str) -> "_Situation":
        with self._database.reading() as session:
            return _situation(session, model_id, target)


@dataclass(frozen=True)
class _Judged:
    """What of a version is judged."""

    signature: dict[str, Any] | None
    metrics: dict[str, float | None]

    @classmethod
    def of(cls, version: ModelVersionRow | Version) -> "_Judged":
        return cls(version.signature, version.metrics)


@dataclass(frozen=True)
class _Situation:
    """What the target is held against."""

    config: ModelServingConfig
    serves_already: bool
    serving_signature: dict[str, Any] | None


def _situation(session: Session, model_id: str, target: str) -> _Situation:
    routes = read_routes(session, model_id).get(model_id, [])
    serving = session.get(ModelVersionRow, (model_id, routes[0].version)) if routes else None
    return _Situation(
        read_config(session, model_id),
        serves_already=[each.version for each in routes if each.weight > 0] == [target],
        serving_signature=serving.signature if serving else None,
    )


def _judge(version: _Judged, situation: _Situation, *, skip_gates: bool) -> list[Check]:
    return [
        _judge_signature(version),
        compare_signatures(situation.serving_signature, version.signature),
        judge_metric(version.metrics, situation.config.performance_threshold, skip=skip_gates),
    ]


def _judge_signature(version: _Judged) -> Check:
    """A version whose requests cannot be validated is not served."""
    try:
        InputSchema.compile(version.signature)
    except SignatureNotSupported as error:
        return _refused("signature", error)
    return Check("signature", passed=True, detail="Requests can be validated against it.")


def _refused(name: str, error: SwitchyardError) -> Check:
    return Check(name, passed=False, detail=error.detail, evidence={"error": type(error).__name__})
