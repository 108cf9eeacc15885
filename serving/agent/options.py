"""What the agent is told by its parent."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class AgentOptions:
    """What the agent of one data plane has to know. Pickled into its process."""

    worker_addresses: list[str]  # the last is the spare's
    agent_address: str
    database_url: str = field(repr=False)
    database_timeout: float  # seconds
    replica_folder: Path
    artifact_folder: Path
    replica: str  # host:port, its name in the database
    url: str  # where it answers
    api_processes: int
    memory_budget_mb: int  # of each worker
    log_level: str
    load_timeout: float = 120.0  # seconds
