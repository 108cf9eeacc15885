"""What a target must pass, each as a verdict with its reason and evidence. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A classifier's primary metric is accuracy, a regressor's r2. Those of the training data say nothing, so they do not
# count. The plain name first: that is what people log on purpose, where tools add what they measured on.
_BASES = ("accuracy", "accuracy_score", "r2", "r2_score")
_PREFIXES = ("", "val_", "validation_", "eval_", "test_")
PRIMARY_METRICS = tuple(f"{prefix}{base}" for base in _BASES for prefix in _PREFIXES)
"""Names under which the primary quality metric is looked for, in this order."""


@dataclass(frozen=True)
class Check:
    """One gate's verdict."""

    name: str
    passed: bool
    detail: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {"name": self.name, "passed": self.passed, "detail": self.detail, **self.evidence}


def judge_metric(metrics: Mapping[str, float | None], threshold: float, *, skip: bool) -> Check:
    """Whether the version's primary metric, as it was logged, reaches the model's `performance_threshold`."""
    name = "performance_threshold"
    metric = next((each for each in PRIMARY_METRICS if metrics.get(each) is not None), None)
    if metric is None:
        return Check(
            name, passed=True, detail="No accuracy or r2 was logged with the version, so there is nothing to compare."
        )
    value = metrics[metric]
    evidence = {"metric": metric, "value": value, "threshold": threshold}
    if value is None or not math.isfinite(value) or value >= threshold:
        return Check(name, passed=True, detail=f"{metric} {value:g} reaches {threshold:g}.", evidence=evidence)
    detail = f"{metric} {value:g} is below the model's performance_threshold {threshold:g}."
    if skip:
        return Check(name, passed=True, detail=f"{detail} Skipped as asked (skip_gates).", evidence=evidence)
    return Check(
        name, passed=False, detail=f"{detail} Lower it (PUT config), or promote with skip_gates.", evidence=evidence
    )


def compare_signatures(serving: Mapping[str, Any] | None, target: Mapping[str, Any] | None) -> Check:
    """What callers of the serving version will notice. A warning: it is often meant."""
    name = "signature_change"
    before, after = _columns(serving), _columns(target)
    if before is None or after is None:
        return Check(name, passed=True, detail="There are no columns to compare.")
    added = sorted(column for column, (_, required) in after.items() if required and column not in before)
    gone = sorted(before.keys() - after.keys())
    changed = sorted(column for column in before.keys() & after.keys() if before[column][0] != after[column][0])
    evidence = {"required_added": added, "removed": gone, "type_changed": changed}
    if not (added or gone or changed):
        return Check(name, passed=True, detail="Requests that were right stay right.", evidence=evidence)
    said = [
        f"{words} {', '.join(columns)}"
        for words, columns in (
            ("requires in addition", added),
            ("no longer knows", gone),
            ("takes another type for", changed),
        )
        if columns
    ]
    return Check(
        name, passed=True, detail=f"Warning: the target {'; '.join(said)}.", evidence={**evidence, "warning": True}
    )


def _columns(signature: Mapping[str, Any] | None) -> dict[str, tuple[Any, bool]] | None:
    """name -> (type, required); None for tensors, which have no names."""
    inputs: Sequence[Any] = (signature or {}).get("inputs") or []
    if not inputs or not all(
        isinstance(each, Mapping) and "name" in each and "tensor-spec" not in each for each in inputs
    ):
        return None
    return {each["name"]: (each.get("type"), bool(each.get("required", True))) for each in inputs}
