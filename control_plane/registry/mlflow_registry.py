"""The registry that MLflow 3 keeps. Every trap of its client that we know of is sprung here and nowhere else."""

import errno
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Read at import: MLflow counts its users unless told not to before it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import requests
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from control_plane.errors import RegistryRefused, RegistryUnreachable, VersionLost
from control_plane.registry.gateway import RegistryVersion, VersionFacts
from serving.logs import logger, mask

log = logger(__name__)

_MISSING = "RESOURCE_DOES_NOT_EXIST"
_PAGE = 500
_REMEMBERED = 2000
_PING_SECONDS = 2.0
# What our own disk says, not the registry.
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class MlflowRegistry:
    """An MLflow server, or the SQLite file of one."""

    def __init__(self, uri: str, *, timeout: float, retries: int) -> None:
        """`timeout` in seconds for one try of one call, `retries` further tries. Asks nothing yet."""
        self._uri = uri
        # MLflow reads these at every call. Its defaults wait four minutes for a registry that is down.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(timeout)))
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(retries)
        os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "0"
        os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"] = "0"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        self._described: dict[str, tuple[dict[str, Any] | None, int | None]] = {}

    @cached_property
    def _client(self) -> MlflowClient:
        """Made at the first call, after the address was looked at: for a SQLite address, making it makes the file."""
        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    @property
    def address(self) -> str:
        """Where it is, without secrets."""
        return mask(self._uri)

    def ping(self) -> str:
        """The server's version; for a file, that it can be read."""
        with self._answering():
            if not self._uri.startswith("http"):
                self._client.search_registered_models(max_results=1)
                return "file"
            # Short: a health check that waits for what it is not asked about is itself unhealthy.
            timeout = min(_PING_SECONDS, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
            answer = requests.get(f"{self._uri.rstrip('/')}/version", timeout=timeout)
            answer.raise_for_status()
            return answer.text.strip()

    def models(self) -> dict[str, dict[str, str]]:
        """Every registered model with its aliases: name -> alias -> version."""
        with self._answering():
            found: dict[str, dict[str, str]] = {}
            token = None
            while True:
                page = self._client.search_registered_models(max_results=_PAGE, page_token=token)
                found.update({model.name: _aliases(model) for model in page})
                token = page.token
                if not token:
                    return found

    def versions(self, model_id: str) -> list[RegistryVersion] | None:
        """Every version, newest first; None when there is no such model."""
        with self._answering():
            found, token = [], None
            while True:
                page = self._client.search_model_versions(_named(model_id), max_results=_PAGE, page_token=token)
                found += [_version(each) for each in page if each.name == model_id]
                token = page.token
                if not token:
                    break
            if not found and not self._exists(model_id):
                return None
            return sorted(found, key=lambda each: int(each.version), reverse=True)

    def aliases(self, model_id: str) -> dict[str, str]:
        """alias -> version; empty when there is no such model.

        From the model: searching for versions answers with empty alias lists, always (mlflow issue 16734).
        """
        with self._answering():
            try:
                model = self._client.get_registered_model(model_id)
            except MlflowException as error:
                if _is_missing(error):
                    return {}
                raise
            return _aliases(model)

    def facts(self, version: RegistryVersion) -> VersionFacts:
        """Metrics, signature, size and author."""
        with self._answering():
            of_run, created_by = self._run_facts(version)
            metrics = _merged(of_run, self._model_metrics(version))
            described = self._describe(version)
            signature, size_bytes = described or (None, None)
            return VersionFacts(metrics, signature, size_bytes, created_by, lost=described is None)

    def download(self, version: RegistryVersion, folder: Path) -> None:
        """Put the version's files into an empty folder, leaving nothing anywhere else."""
        with self._answering(), tempfile.TemporaryDirectory(dir=folder.parent) as room:
            try:
                source = self._fetch(version, "", Path(room))
            except (MlflowException, OSError) as error:
                _raise_if_unreachable(error)
                if _is_local(error):
                    raise
                raise VersionLost(version.model_id, version.version, _first_line(error)) from error
            if not (source / "MLmodel").is_file():
                raise VersionLost(version.model_id, version.version, "the folder holds no MLmodel file")
            for each in source.iterdir():
                shutil.move(each, folder / each.name)

    def set_alias(self, model_id: str, alias: str, version: str) -> None:
        """Let the alias mean this version from now on."""
        with self._answering():
            self._client.set_registered_model_alias(model_id, alias, version)

    def delete_alias(self, model_id: str, alias: str) -> None:
        """Remove the alias, if it is there."""
        with self._answering():
            try:
                self._client.delete_registered_model_alias(model_id, alias)
            except MlflowException as error:
                if not _is_missing(error):
                    raise

    def set_tag(self, model_id: str, version: str, key: str, value: str) -> None:
        """Tag a version."""
        with self._answering():
            self._client.set_model_version_tag(model_id, version, key, value)

    def _refuse_impossible(self) -> None:
        """A wrong SQLite path would quietly become a new, empty registry."""
        parts = urlsplit(self._uri)
        if parts.scheme in ("http", "https"):
            return
        if parts.scheme != "sqlite":
            problem = "expected http://host:port, or sqlite:////absolute/mlflow.db of an existing registry"
            raise RegistryUnreachable(mask(self._uri), problem)
        file = Path(self._uri.removeprefix("sqlite:///"))
        if not file.is_file() or file.stat().st_size == 0:
            raise RegistryUnreachable(mask(self._uri), "the file does not exist or is empty, and is not created here")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turns what MLflow and its HTTP library raise into our errors."""
        self._refuse_impossible()
        try:
            yield
        except MlflowException as error:
            if _is_unreachable(error):
                raise RegistryUnreachable(self.address, _why_unreachable(error)) from error
            raise RegistryRefused(self.address, _first_line(error)) from error
        except requests.RequestException as error:
            raise RegistryUnreachable(self.address, _why_unreachable(error)) from error

    def _exists(self, model_id: str) -> bool:
        try:
            self._client.get_registered_model(model_id)
        except MlflowException as error:
            # A name that MLflow would never accept does not exist either.
            if _is_missing(error) or error.error_code == "INVALID_PARAMETER_VALUE":
                return False
            raise
        return True

    def _run_facts(self, version: RegistryVersion) -> tuple[dict[str, float], str | None]:
        """Metrics and author of the run; nothing where it was deleted for good."""
        if not version.run_id:
            return {}, None
        try:
            run = self._client.get_run(version.run_id)
        except MlflowException as error:
            _raise_if_unreachable(error)
            return {}, None
        return dict(run.data.metrics), run.data.tags.get("mlflow.user") or run.info.user_id or None

    def _model_metrics(self, version: RegistryVersion) -> dict[str, float]:
        """Metrics logged to the model itself rather than to its run."""
        logged_model = version.identity.removeprefix("models:/")
        if logged_model == version.identity or not logged_model.startswith("m-"):
            return {}
        try:
            found = self._client.get_logged_model(logged_model).metrics or []
        except MlflowException as error:
            _raise_if_unreachable(error)
            return {}
        return {metric.key: metric.value for metric in found}

    def _describe(self, version: RegistryVersion) -> tuple[dict[str, Any] | None, int | None] | None:
        """Signature and size from the MLmodel file, None where it is gone.

        Files under one identity never change, so they are read once.
        """
        if version.identity in self._described:
            return self._described[version.identity]
        with tempfile.TemporaryDirectory() as room:
            try:
                file = self._fetch(version, "/MLmodel", Path(room))
            except (MlflowException, OSError) as error:
                if _is_local(error) or not self._is_ours(version):
                    return None, None  # nobody can tell at the moment; the others are to be listed all the same
                _raise_if_unreachable(error)
                return None
            except Exception as error:  # noqa: BLE001 (the clients of other stores raise what they like)
                log.warning("files cannot be looked at", model_id=version.model_id, error=repr(error))
                return None, None
            try:
                found = describe_model(file)
            except Exception as error:  # noqa: BLE001 (anybody may register any file: it must not hide the others)
                log.warning(
                    "MLmodel cannot be read", model_id=version.model_id, version=version.version, error=repr(error)
                )
                found = None, None
        if len(self._described) < _REMEMBERED:
            self._described[version.identity] = found
        return found

    def _is_ours(self, version: RegistryVersion) -> bool:
        """Whether the registry itself delivers the files: of another store that is down it knows nothing."""
        uri = self._client.get_model_version_download_uri(version.model_id, version.version)
        return str(uri).startswith(("mlflow-artifacts:", "file:", "/"))

    def _fetch(self, version: RegistryVersion, path: str, room: Path) -> Path:
        """Download into `room`. Without a folder of our own MLflow leaves a copy in the system's, for good."""
        uri = self._client.get_model_version_download_uri(version.model_id, version.version)
        return Path(download_artifacts(artifact_uri=uri + path, dst_path=str(room), tracking_uri=self._uri))


def describe_model(mlmodel: Path) -> tuple[dict[str, Any] | None, int | None]:
    """Signature and size in bytes from an MLmodel file, or from the folder that holds one.

    The signature has lists of columns: `{"inputs": [{"name", "type", "required"}], "outputs": [...], "params": ...}`.
    """
    model = Model.load(str(mlmodel))
    size = model.model_size_bytes
    if model.signature is None:
        return None, size
    parts = {name: getattr(model.signature, name) for name in ("inputs", "outputs", "params")}
    return {name: part.to_dict() if part is not None else None for name, part in parts.items()}, size


def _merged(of_run: dict[str, float], of_model: dict[str, float]) -> dict[str, float | None]:
    """One value a metric: the model's own, since a run may have logged several models.

    Except that MLflow hands a NaN that was copied to a model back as 0, the best of all losses. JSON knows neither NaN
    nor infinity, so what a diverged training logged becomes None.
    """
    diverged = {name for name, value in of_run.items() if not _is_finite(value)}
    return {
        name: None if name in diverged or not _is_finite(value) else value
        for name, value in {**of_run, **of_model}.items()
    }


def _is_finite(value: float) -> bool:
    """MLflow keeps infinity as the largest number there is."""
    return math.isfinite(value) and abs(value) < sys.float_info.max


def _aliases(model: Any) -> dict[str, str]:
    # A number or a text, depending on the store behind it.
    return {alias: str(version) for alias, version in model.aliases.items()}


def _version(found: Any) -> RegistryVersion:
    return RegistryVersion(
        model_id=found.name,
        version=str(found.version),  # a number through the file, a text through a server
        identity=found.source,
        run_id=found.run_id or None,
        tags=dict(found.tags),
        description=found.description or "",
        complete=found.status == "READY",
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
    )


def _named(model_id: str) -> str:
    """The filter for one model. MLflow knows no escape: the quote is chosen so that the name does not end it."""
    quote = '"' if "'" in model_id else "'"
    return f"name = {quote}{model_id.replace(quote, '')}{quote}"


def _is_missing(error: MlflowException) -> bool:
    """Also inside the collected failures of a download, which come as an internal error whatever they are."""
    text = str(error)
    return bool(error.error_code == _MISSING) or ("404 Client Error" in text and "Max retries" not in text)


def _is_unreachable(error: MlflowException) -> bool:
    """Whether the server did not answer, or answered that it cannot at the moment."""
    if _is_missing(error) or error.error_code == "INVALID_PARAMETER_VALUE":
        return False
    return bool(error.get_http_status_code() >= 500)


def _is_local(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _LOCAL


def _raise_if_unreachable(error: Exception) -> None:
    if isinstance(error, requests.RequestException) or (isinstance(error, MlflowException) and _is_unreachable(error)):
        raise error


def _why_unreachable(error: Exception) -> str:
    """A few words: the library's own text is three nested exceptions with the whole address in each."""
    text = str(error)
    if "timed out" in text or "Timeout" in text:
        return f"no answer within {os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
    for words in ("Connection refused", "Name or service not known", "Temporary failure in name resolution"):
        if words in text:
            return words.lower()
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return mask(lines[0][:300]) if lines else type(error).__name__
