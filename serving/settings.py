"""The data plane's settings. The control plane's extend them: one prefix, one `.env`, one list."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServingSettings(BaseSettings):
    """What `python -m serving` needs. Each field is `SWITCHYARD_<NAME>` in the environment or in `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="SWITCHYARD_",
        env_file=".env",
        env_ignore_empty=True,  # an empty host would mean every address of this machine
        extra="ignore",
        frozen=True,
        validate_default=True,
    )

    data_folder: Path = Field(
        Path(".switchyard"), description="Folder of everything Switchyard keeps: databases, artifacts, logs, sockets."
    )
    database_url: SecretStr | None = Field(
        None,
        description="Database of routes, changes and predictions: sqlite:////absolute/file.db or "
        "postgresql://user:password@host/name. Default: switchyard.db in the data folder.",
    )
    database_timeout: float = Field(
        10.0, gt=0, le=300, description="Seconds to wait for a connection or for another writer's lock."
    )
    artifact_folder: Path | None = Field(
        None, description="Content-addressed store of model folders. Default: artifacts in the data folder."
    )
    host: str = Field(
        "127.0.0.1",
        description="Address that every server binds to. 0.0.0.0 opens them to the network: put a proxy with TLS and login before it.",
    )
    data_plane_port: int = Field(
        8000, ge=1024, le=65535, description="Port of the data plane: predict, health, metrics."
    )
    workers: int = Field(2, ge=1, le=256, description="Inference workers of the data plane.")
    api_processes: int = Field(1, ge=1, le=64, description="HTTP processes of the data plane.")
    max_body_bytes: int = Field(
        8 * 2**20,
        ge=1024,
        le=2**30,
        description="Largest body of a prediction request, in bytes; a larger one is refused with 413.",
    )
    memory_budget_mb: int = Field(
        4096,
        ge=64,
        description="Memory in MB that one inference worker may use. Beyond it versions without traffic are unloaded, least recently used first.",
    )
    load_timeout: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Seconds that loading and warming a version may take. Beyond it the version has failed, and the worker is replaced.",
    )
    spool_max_bytes: int = Field(
        2 * 2**30,
        ge=2**20,
        description="Bytes of predictions that may wait on disk for the database. Beyond it payloads are dropped first.",
    )
    log_predictions: bool = Field(
        default=True,
        description="Whether predictions are logged at all. Without the log there is no quality, drift, test or usage.",
    )
    log_payloads: bool = Field(
        default=True, description="Whether the prediction log keeps each request's features, for drift and replay."
    )
    drain_timeout: float = Field(
        10.0, gt=0, le=600, description="Seconds that requests under way get to finish when the data plane stops."
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^\s/@]+(/\S*)?)?$",
        description="URL that spans of predictions are sent to by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces. Default: none are.",
    )
    trace_sample_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the predictions without a traceparent that begin a trace of their own, where spans are sent. With one, whoever began it decides.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )

    @cached_property
    def home(self) -> Path:
        """The data folder, absolute."""
        return self.data_folder.expanduser().absolute()

    @cached_property
    def resolved_database_url(self) -> str:
        """The database's address with its secret; never log it. A file's path is absolute."""
        if self.database_url is None:
            return f"sqlite:///{self.home / 'switchyard.db'}"
        url = self.database_url.get_secret_value()
        file = url.removeprefix("sqlite:///")
        return f"sqlite:///{Path(file).absolute()}" if file not in (url, "", ":memory:") else url

    @cached_property
    def resolved_artifact_folder(self) -> Path:
        """The artifact store, absolute."""
        return (self.artifact_folder or self.home / "artifacts").expanduser().absolute()

    @cached_property
    def replica_folder(self) -> Path:
        """What this data plane keeps for itself: the last good table of routes, and the spool of predictions."""
        return self.home / f"data-plane-{self.data_plane_port}"

    @cached_property
    def socket_folder(self) -> Path:
        """Folder of the unix sockets between HTTP processes and workers."""
        return self.home / "run"
