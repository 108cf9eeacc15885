"""What can go wrong in the data plane and in what both planes share, each with its facts.

    SwitchyardError
    ├── ModelNotFound
    ├── VersionNotLoaded
    ├── NotReady
    │   └── WorkerLost
    ├── BadRequest
    │   ├── NotJson
    │   ├── WrongContentType
    │   ├── BodyTooLarge
    │   ├── BodyTooSlow
    │   ├── ValidationFailed
    │   └── RequestIdReused
    ├── TooManyRequests
    ├── DeadlineExceeded
    ├── ModelError
    ├── ModelNotLoadable
    │   └── SignatureNotSupported
    ├── PathNotFound
    ├── MethodNotAllowed
    ├── InternalError
    ├── BrokenChannel
    ├── CannotStart
    │   ├── WrongSetting
    │   ├── PortTaken
    │   └── SocketFolderUnusable
    ├── DatabaseUnavailable
    │   ├── DatabaseMissing
    │   ├── DatabaseEmpty
    │   ├── DatabaseUnreachable
    │   ├── DatabaseLocked
    │   ├── DatabaseReadOnly
    │   ├── DatabaseDamaged
    │   ├── SchemaOlder
    │   └── SchemaNewer
    └── ArtifactError
        ├── ArtifactMissing
        ├── ArtifactDamaged
        └── ArtifactFolderNotWritable

The fields of a class are the facts its answer carries; its text says what is wrong and what would be right.
"""

from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any


class SwitchyardError(Exception):
    """The root: everything we raise on purpose. Subclasses are dataclasses and say their text in `detail`."""

    @property
    def detail(self) -> str:
        """One or two sentences: what is wrong, and the way out."""
        return type(self).__name__

    @property
    def facts(self) -> dict[str, Any]:
        """The fields, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)} if is_dataclass(self) else {}

    def body(self) -> dict[str, Any]:
        """The answer on the wire: `{"error", "detail", ...facts}`."""
        return {"error": type(self).__name__, "detail": self.detail, **self.facts}

    def __str__(self) -> str:
        return self.detail

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception pickles by its args, which a dataclass does not fill; worker processes send these across.
        return type(self), tuple(self.facts.values())


def _named(names: list[str]) -> str:
    """A readable list of names, or the word none."""
    return ", ".join(names) if names else "none"


@dataclass
class ModelNotFound(SwitchyardError):
    model_id: str
    known: list[str]

    @property
    def detail(self) -> str:
        return f"There is no model '{self.model_id}'. Known models: {_named(self.known)}."


@dataclass
class NotReady(SwitchyardError):
    reason: str

    @property
    def detail(self) -> str:
        return f"Not ready: {self.reason}. Try again shortly."


class WorkerLost(NotReady):
    """The worker died under this request, and so did the next one."""


class BadRequest(SwitchyardError):
    """The request cannot be read at all."""


@dataclass
class NotJson(BadRequest):
    problem: str

    @property
    def detail(self) -> str:
        return f"The body is not valid JSON: {self.problem}."


@dataclass
class WrongContentType(BadRequest):
    given: str

    @property
    def detail(self) -> str:
        given = f"'{self.given}'" if self.given else "none"
        return f"The body must be JSON: send the header 'Content-Type: application/json'. Given: {given}."


@dataclass
class BodyTooLarge(BadRequest):
    limit_bytes: int

    @property
    def detail(self) -> str:
        return f"The body is larger than {self.limit_bytes} bytes. Send fewer rows in one request."


@dataclass
class BodyTooSlow(BadRequest):
    limit_seconds: float

    @property
    def detail(self) -> str:
        return f"The body did not arrive whole within {self.limit_seconds:g} s. Send the request again."


@dataclass(frozen=True)
class FieldProblem:
    """What is wrong with one field of a request."""

    path: str  # as input_data.temp[3]
    problem: str
    expected: str


@dataclass
class ValidationFailed(BadRequest):
    fields: list[FieldProblem]

    @property
    def detail(self) -> str:
        shown = "; ".join(f"{each.path}: {each.problem}, expected {each.expected}" for each in self.fields[:5])
        more = len(self.fields) - 5
        return f"{shown}; and {more} more." if more > 0 else f"{shown}."

    def body(self) -> dict[str, Any]:
        """The answer on the wire, each field as an object."""
        return {"error": type(self).__name__, "detail": self.detail, "fields": [asdict(each) for each in self.fields]}


@dataclass
class RequestIdReused(BadRequest):
    request_id: str

    @property
    def detail(self) -> str:
        return (
            f"request_id {self.request_id} was used before for another body. Send the same body to get the same "
            "answer again, or a new request_id for a new question."
        )


@dataclass
class TooManyRequests(SwitchyardError):
    model_id: str
    limit: int
    retry_after: int  # whole seconds, as the header carries them

    @property
    def detail(self) -> str:
        return (
            f"{self.limit} requests of model '{self.model_id}' are under way already, its max_concurrent_requests. "
            f"Try again in {self.retry_after} s."
        )


@dataclass
class DeadlineExceeded(SwitchyardError):
    model_id: str
    timeout: float

    @property
    def detail(self) -> str:
        return f"Model '{self.model_id}' gave no answer within {self.timeout:g} s."


@dataclass
class ModelError(SwitchyardError):
    """The model itself raised. Counts against the version."""

    model_id: str
    version: str
    row: int | None  # index of the first row it cannot bear; None: it is not one row
    exception: str
    problem: str

    @property
    def detail(self) -> str:
        where = "" if self.row is None else f" on row {self.row}"
        return f"Version {self.version} of model '{self.model_id}' raised {self.exception}{where}: {self.problem}"

    def body(self) -> dict[str, Any]:
        """The answer on the wire, under the name that the API promises."""
        return {**super().body(), "error": "model_error"}


@dataclass
class ModelNotLoadable(SwitchyardError):
    """A version's files cannot become a model here."""

    problem: str

    @property
    def detail(self) -> str:
        return f"The version cannot be loaded: {self.problem}"


class SignatureNotSupported(ModelNotLoadable):
    """Requests could not be validated."""


@dataclass
class VersionNotLoaded(SwitchyardError):
    model_id: str
    version: str
    known: list[str]

    @property
    def detail(self) -> str:
        return f"Version '{self.version}' of model '{self.model_id}' is not loaded here. Loaded: {_named(self.known)}."


@dataclass
class PathNotFound(SwitchyardError):
    path: str
    known: list[str]

    @property
    def detail(self) -> str:
        return f"There is nothing at '{self.path}'. Known paths: {_named(self.known)}."


@dataclass
class MethodNotAllowed(SwitchyardError):
    method: str
    allowed: list[str]

    @property
    def detail(self) -> str:
        return f"{self.method} is not possible here. Possible: {_named(self.allowed)}."


@dataclass
class InternalError(SwitchyardError):
    request_id: str

    @property
    def detail(self) -> str:
        return f"Something unexpected happened. The server's log says what, under request_id {self.request_id}."


@dataclass
class BrokenChannel(SwitchyardError):
    problem: str

    @property
    def detail(self) -> str:
        return f"What arrived between HTTP process and worker is not a frame: {self.problem}. The connection is closed."


class CannotStart(SwitchyardError):
    """The process ends before it has begun to serve."""


@dataclass
class WrongSetting(CannotStart):
    variable: str
    problem: str

    @property
    def detail(self) -> str:
        return f"{self.variable} is not usable: {self.problem}. Correct it in the environment or in .env."


@dataclass
class PortTaken(CannotStart):
    host: str
    port: int
    variable: str

    @property
    def detail(self) -> str:
        return (
            f"Port {self.port} of {self.host} is taken by another process. End that one, or set {self.variable} "
            "to a free port."
        )


@dataclass
class SocketFolderUnusable(CannotStart):
    folder: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"Cannot keep sockets in {self.folder}: {self.problem}. "
            "Set SWITCHYARD_DATA_FOLDER to a folder that can be written to."
        )


class DatabaseUnavailable(SwitchyardError):
    """Our database cannot be used as it is. Never means that there are no routes."""


@dataclass
class DatabaseMissing(DatabaseUnavailable):
    database: str

    @property
    def detail(self) -> str:
        return (
            f"The database {self.database} does not exist. Check SWITCHYARD_DATABASE_URL, restore the file from a "
            "backup (and remove the files -wal and -shm beside it first), or create a new one: switchyard database upgrade --create"
        )


@dataclass
class DatabaseEmpty(DatabaseUnavailable):
    database: str

    @property
    def detail(self) -> str:
        return (
            f"The database {self.database} holds no tables of ours. Check SWITCHYARD_DATABASE_URL, or fill it: "
            "switchyard database upgrade --create"
        )


@dataclass
class DatabaseUnreachable(DatabaseUnavailable):
    database: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"The database {self.database} does not answer: {self.problem}. "
            "Is it running, and is SWITCHYARD_DATABASE_URL right?"
        )


@dataclass
class DatabaseLocked(DatabaseUnavailable):
    database: str
    waited: float

    @property
    def detail(self) -> str:
        return (
            f"Another process held the write lock of {self.database} for more than {self.waited:g} s. Nothing was "
            "changed; try again. If it stays so, end the process that holds it ('switchyard doctor' names it)."
        )


@dataclass
class DatabaseReadOnly(DatabaseUnavailable):
    database: str

    @property
    def detail(self) -> str:
        return f"The database {self.database} cannot be written to. Check the rights of the file and its folder, and free disk space."


@dataclass
class DatabaseDamaged(DatabaseUnavailable):
    database: str
    problem: str

    @property
    def detail(self) -> str:
        return f"The database {self.database} cannot be read: {self.problem}. Restore it from a backup."


@dataclass
class SchemaOlder(DatabaseUnavailable):
    database: str
    found: str
    expected: str

    @property
    def detail(self) -> str:
        return (
            f"The database {self.database} has schema {self.found}, this version of Switchyard needs "
            f"{self.expected}. Back it up, then: switchyard database upgrade"
        )


@dataclass
class SchemaNewer(DatabaseUnavailable):
    database: str
    found: str
    known: str

    @property
    def detail(self) -> str:
        return (
            f"The database {self.database} has schema {self.found}, which is newer than this version of Switchyard "
            f"knows ({self.known}). Run the newer Switchyard that wrote it, or take it back with that one: "
            f"switchyard database downgrade {self.known}"
        )


class ArtifactError(SwitchyardError):
    """A kept model folder cannot be used."""


@dataclass
class ArtifactMissing(ArtifactError):
    digest: str
    folder: str

    @property
    def detail(self) -> str:
        return f"The artifact {self.digest} is not in {self.folder}. Prepare the version again, or restore the folder."


@dataclass
class ArtifactDamaged(ArtifactError):
    digest: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"The artifact {self.digest} is not what was recorded: {self.problem}. It is not loaded. "
            "Restore the folder, or register and prepare the version anew."
        )


@dataclass
class ArtifactFolderNotWritable(ArtifactError):
    folder: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"Cannot write to the artifact folder {self.folder}: {self.problem}. "
            "Check rights and free space, or set SWITCHYARD_ARTIFACT_FOLDER."
        )
