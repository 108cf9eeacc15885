"""Probes: each served model is asked one row through the real path, at the pace of its own configuration."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from control_plane.data_plane import Answer, DataPlane
from control_plane.errors import DataPlaneUnreachable
from control_plane.monitoring.example import infer_request
from control_plane.storage.configs import read_configs
from control_plane.storage.probes import read_probe, read_probes, write_probe
from control_plane.storage.routes import read_routes
from control_plane.storage.tables import HealthProbeRow
from serving.artifacts import ArtifactStore
from serving.contracts import ModelServingConfig
from serving.errors import SignatureNotSupported
from serving.input_schema import InputSchema
from serving.logs import logger
from serving.store import Database, ModelVersionRow

log = logger(__name__)

FAILURES_UNTIL_DOWN = 3
SUCCESSES_UNTIL_UP = 2
_EXAMPLES = ("serving_input_example.json", "input_example.json")
_MOST_SECONDS = 10.0
_BUSY = 429


@dataclass(frozen=True)
class Probe:
    """A question to ask."""

    model_id: str
    version: str
    body: bytes | None  # None: there is nothing to ask by, see problem
    timeout: float  # seconds
    problem: str | None = None


@dataclass(frozen=True)
class Finding:
    """What came of a probe."""

    model_id: str
    version: str
    ok: bool | None  # None: it could not be probed
    seconds: float | None
    problem: str | None


class HealthMonitor:
    """Decides which probes are due, asks them, and keeps what was found."""

    def __init__(self, database: Database, artifacts: ArtifactStore, data_plane: DataPlane) -> None:
        self._database = database
        self._artifacts = artifacts
        self._data_plane = data_plane

    def due(self) -> list[Probe]:
        """A probe for each served model whose last one is `health_check_interval` seconds old, or of another version.

        Raises:
            DatabaseUnavailable: it cannot be known what serves.
        """
        now = datetime.now(UTC)
        with self._database.reading() as session:
            configs = read_configs(session)
            last = read_probes(session)
            wanted = [
                (session.get_one(ModelVersionRow, (model_id, routes[0].version)), configs.get(model_id, _DEFAULT))
                for model_id, routes in read_routes(session).items()
                if _is_due(last.get(model_id), routes[0].version, configs.get(model_id, _DEFAULT), now)
            ]
        # Not all are asked at once: one that was left out last time comes first.
        wanted.sort(key=lambda each: _checked(last.get(each[0].model_id)))
        self._data_plane.longest_timeout = float(max(each.timeout for each in (_DEFAULT, *configs.values())))
        return [self._probe(version, config) for version, config in wanted]

    async def ask(self, probe: Probe) -> Finding:
        """Ask the data plane. A failure is a finding, not an exception."""
        if probe.body is None:
            return Finding(probe.model_id, probe.version, None, None, probe.problem)
        started = time.monotonic()
        try:
            answer = await self._data_plane.infer(probe.model_id, probe.version, probe.body, probe.timeout)
        except DataPlaneUnreachable as error:
            return Finding(probe.model_id, probe.version, ok=False, seconds=None, problem=error.detail)
        return _judged(probe, answer, time.monotonic() - started)

    def keep(self, finding: Finding) -> None:
        """Record it, and say when a model has gone down or come up again.

        Raises:
            DatabaseUnavailable: it is lost; the next probe comes.
        """
        with self._database.writing() as session:
            before = read_probe(session, finding.model_id)
            was_down = before is not None and before.version == finding.version and before.down
            row = following(before, finding, datetime.now(UTC))
            write_probe(session, row)
        if row.down and not was_down:
            # What the model answered stands in status; it may name values of the example that it was asked about.
            log.warning("probes fail", model_id=row.model_id, version=row.version, failures=row.failures)
        elif was_down and not row.down:
            log.info("probes are answered again", model_id=row.model_id, version=row.version)

    def _probe(self, version: ModelVersionRow, config: ModelServingConfig) -> Probe:
        timeout = min(float(config.timeout), _MOST_SECONDS)
        artifact = self._artifacts.find(version.digest)
        try:
            if artifact is None:
                raise ValueError("its files are not in the artifact store")  # noqa: TRY301 (one way to say it)
            fields = InputSchema.compile(version.signature).describe()
            body = json.dumps(infer_request(_read_example(artifact.folder), fields), allow_nan=False).encode()
        except (ValueError, TypeError, OSError, SignatureNotSupported) as error:
            return Probe(version.model_id, version.version, None, timeout, f"Not probed: {error}.")
        return Probe(version.model_id, version.version, body, timeout)


_DEFAULT = ModelServingConfig()


def following(before: HealthProbeRow | None, finding: Finding, at: datetime) -> HealthProbeRow:
    """The record after a finding: three failures in a row make a model down, two successes in a row up again.

    Another version begins anew; what could not be probed changes nothing.
    """
    same = before if before is not None and before.version == finding.version else None
    failures, successes, down = (same.failures, same.successes, same.down) if same else (0, 0, False)
    if finding.ok is True:
        failures, successes = 0, successes + 1
        down = down and successes < SUCCESSES_UNTIL_UP
    elif finding.ok is False:
        failures, successes = failures + 1, 0
        down = down or failures >= FAILURES_UNTIL_DOWN
    return HealthProbeRow(
        model_id=finding.model_id,
        version=finding.version,
        checked_at=at,
        ok=finding.ok,
        seconds=finding.seconds,
        failures=failures,
        successes=successes,
        down=down,
        problem=finding.problem,
    )


def _checked(last: HealthProbeRow | None) -> float:
    return last.checked_at.timestamp() if last else 0.0


def _is_due(last: HealthProbeRow | None, version: str, config: ModelServingConfig, now: datetime) -> bool:
    if last is None or last.version != version:
        return True
    return (now - last.checked_at).total_seconds() >= config.health_check_interval


def _judged(probe: Probe, answer: Answer, seconds: float) -> Finding:
    if answer.status == _BUSY:
        return Finding(probe.model_id, probe.version, None, seconds, "Not probed: it has as many requests as it may.")
    ok = answer.status == 200
    return Finding(probe.model_id, probe.version, ok, seconds, None if ok else _told(answer))


def _told(answer: Answer) -> str:
    """Status and error's name and words, whatever the body is."""
    try:
        body: Any = json.loads(answer.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return f"The probe was answered {answer.status}."
    words = " ".join(str(body[key]) for key in ("error", "detail") if body.get(key))
    return f"The probe was answered {answer.status}: {words[:500]}"


def _read_example(folder: Path) -> Any:
    """MLflow writes bare NaN into them, which Python reads and no other reader of JSON does."""
    for name in _EXAMPLES:
        file = folder / name
        if file.is_file():
            return json.loads(file.read_text())
    raise ValueError("no input example was logged with the version")
