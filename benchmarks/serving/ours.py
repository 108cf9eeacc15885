"""Switchyard as it is measured: the data plane with a database, and everything on unless a shape says otherwise."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.candidates import OURS, Candidate, Prepared, Said
from benchmarks.serving.field import probabilities
from benchmarks.serving.house import House
from benchmarks.serving.models import BenchModel
from benchmarks.serving.outcome import Question
from serving.settings import ServingSettings


@dataclass(frozen=True)
class Shape:
    """What a data plane serves and how. As it stands: one model, an A/B split between two versions, everything on."""

    models: int = 1
    versions: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the data plane, by the names of ServingSettings
    config: Mapping[str, Any] = field(default_factory=dict)  # of each model, by the names of ModelServingConfig


WITHOUT_LOG = "log_predictions"
"""The setting that leaves out the prediction log."""


def can_leave_out_the_log() -> bool:
    """Whether this data plane has that setting."""
    return WITHOUT_LOG in ServingSettings.model_fields


def switchyard(title: str = "Switchyard", shape: Shape | None = None) -> Candidate:
    """Ours in this shape; validation, durable log, metrics and ids on by default."""
    shape = shape or Shape()

    def prepare(model: BenchModel, folder: Path, port: int) -> Prepared:
        house = House(folder)
        for name in _names(model, shape.models):
            for version in range(1, shape.versions + 1):
                house.keep(model.saved(version), name, str(version))
                house.want(name, str(version))
            if shape.config:
                house.configure(name, **shape.config)
            house.route(name, {str(version): 1 / shape.versions for version in range(1, shape.versions + 1)})
        house.close()
        given = {**house.settings, "data_plane_port": port, "log_level": "warning", **shape.settings}
        environment = {f"SWITCHYARD_{name.upper()}": str(value) for name, value in given.items()}
        spool = house.home / f"data-plane-{port}" / "spool"
        return Prepared([sys.executable, "-m", "serving"], environment, spool)

    def ask(model: BenchModel) -> tuple[Question, ...]:
        names = _names(model, shape.models)
        return tuple(
            Question(f"/ml/models/{name}/predict", _body(record, number), number)
            for number, record in enumerate(model.records)
            for name in names
        )

    return Candidate(
        name=OURS,
        title=title,
        prepare=prepare,
        ask=ask,
        decode=_decode,
        readiness=("/health/ready", lambda body: _is_loaded(body, shape.models)),
        versions=frozenset(range(1, shape.versions + 1)),
        models=("logistic", "flights", "forest"),
        connections=(1, 32, 128),
        in_quick=True,
    )


def _is_loaded(body: bytes, models: int) -> bool:
    """Whether every routed version of so many models is held by a worker."""
    said = json.loads(body)["models"]
    return len(said) == models and all(each["ready"] for each in said)


def _names(model: BenchModel, count: int) -> list[str]:
    return [model.name if number == 0 else f"{model.name}-{number + 1}" for number in range(count)]


def _body(record: dict[str, Any], number: int) -> bytes:
    # The unit of the split is the user: with as many as there are records, both versions get their half.
    return json.dumps({"input_data": record, "user_id": f"user-{number}"}).encode()


def _decode(body: bytes) -> Said:
    answer = json.loads(body)
    return Said(int(answer["model_version"]), probabilities(answer["predictions"][0]))
