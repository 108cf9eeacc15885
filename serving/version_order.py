"""What a worker is told of a version that it should load: by an order of the agent, or by the list for its start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from serving.channel import version_key
from serving.load_journal import Mark
from serving.logs import logger

log = logger(__name__)


@dataclass(frozen=True)
class VersionOrder:
    """A version to be loaded, and how."""

    model_id: str
    version: str
    digest: str
    batch_size: int  # rows per call of the model
    timeout: float  # seconds that a request may take
    warmup_requests: int
    compiled: bool  # whether its compiled form may answer, where that is proven

    @classmethod
    def read(cls, said: dict[str, Any]) -> "VersionOrder":
        """From a CONTROL frame or the file of versions. Raises KeyError, TypeError or ValueError."""
        return cls(
            model_id=str(said["model_id"]),
            version=str(said["version"]),
            digest=str(said["digest"]),
            batch_size=int(said["batch_size"]),
            timeout=float(said["timeout"]),
            warmup_requests=int(said["warmup_requests"]),
            compiled=bool(said.get("compiled", True)),
        )

    @property
    def key(self) -> bytes:
        """See version_key."""
        return version_key(self.model_id, self.version)

    @property
    def mark(self) -> Mark:
        """How the journal calls it."""
        return Mark(self.model_id, self.version, self.digest)


def read_list(file: Path) -> list[VersionOrder]:
    """What a worker that starts should load; nothing where the file is missing or cannot be read."""
    try:
        return [VersionOrder.read(each) for each in orjson.loads(file.read_bytes())["versions"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as problem:
        log.error("list of versions cannot be read, starting without", file=str(file), problem=type(problem).__name__)  # noqa: TRY400
        return []
