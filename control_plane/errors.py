"""What can go wrong in the control plane, besides what both planes share (serving/errors.py).

    SwitchyardError
    ├── SettingsInvalid
    ├── RegistryError
    │   ├── RegistryUnreachable
    │   ├── RegistryRefused
    │   ├── VersionNotFound
    │   ├── AliasNotFound
    │   ├── VersionReplaced
    │   ├── VersionLost
    │   └── InvalidVersionReference
    ├── RouteWriteRefused
    │   ├── FenceLost
    │   └── RoutesInvalid
    ├── LeaseHeld
    ├── ChangeRefused
    │   ├── ChangeNotFound
    │   ├── ChangeUnderWay
    │   ├── ChangeMovedOn
    │   └── IdempotencyKeyReused
    ├── DataPlaneUnreachable
    ├── DemoFailed
    ├── ApiError
    │   ├── ApiUnreachable
    │   └── ApiRefused
    │       └── ApiNotReady
    ├── InputUnusable
    ├── ForeignHost
    ├── ForeignOrigin
    ├── StartRefused
    │   ├── PortTaken
    │   ├── PortShared
    │   ├── HostNotUsable
    │   ├── AlreadyRunning
    │   └── FolderNotWritable
    ├── StartFailed
    │   ├── PartEnded
    │   └── PartNotReady
    └── UnknownPart

The edge (api/errors.py) maps each leaf to a status code; the command line prints its text and exits with 1.
"""

from dataclasses import dataclass
from typing import Any

from serving.errors import SwitchyardError


@dataclass(frozen=True)
class SettingProblem:
    """One wrong setting."""

    variable: str
    origin: str
    given: str | None
    problem: str
    allowed: str

    def __str__(self) -> str:
        if self.given is None:
            return f"{self.variable} (from {self.origin}): {self.problem}; {self.allowed}"
        return f"{self.variable}='{self.given}' (from {self.origin}): {self.problem}. Allowed: {self.allowed}."


@dataclass
class SettingsInvalid(SwitchyardError):
    problems: list[SettingProblem]

    @property
    def detail(self) -> str:
        return "\n".join(str(each) for each in self.problems)


class RegistryError(SwitchyardError):
    """MLflow, or what we asked of it."""


@dataclass
class RegistryUnreachable(RegistryError):
    registry: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"The registry at {self.registry} does not answer: {self.problem}. What serves goes on serving. "
            "Check that MLflow runs ('switchyard doctor') and SWITCHYARD_MLFLOW_TRACKING_URI."
        )


@dataclass
class RegistryRefused(RegistryError):
    registry: str
    problem: str

    @property
    def detail(self) -> str:
        return f"The registry at {self.registry} refused: {self.problem}"


@dataclass
class VersionNotFound(RegistryError):
    model_id: str
    version: str
    known: list[str]

    @property
    def detail(self) -> str:
        known = ", ".join(self.known) if self.known else "none"
        return f"Model '{self.model_id}' has no version {self.version}. Known versions: {known}."


@dataclass
class AliasNotFound(RegistryError):
    model_id: str
    alias: str
    known: list[str]

    @property
    def detail(self) -> str:
        known = ", ".join(self.known) if self.known else "none"
        return (
            f"Model '{self.model_id}' has no alias '{self.alias}'. Known aliases: {known}; a version number works too."
        )


@dataclass
class VersionReplaced(RegistryError):
    """The model was deleted in MLflow and made again: the number means another version there now."""

    model_id: str
    version: str
    recorded: str
    found: str

    @property
    def detail(self) -> str:
        return (
            f"Version {self.version} of '{self.model_id}' in the registry is another model ({self.found}) than the one "
            f"recorded under that number ({self.recorded}). Register it once more, so that it gets a number of its own."
        )


@dataclass
class VersionLost(RegistryError):
    """The registry lists the version, its files are gone, and we hold no copy."""

    model_id: str
    version: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"The files of version {self.version} of '{self.model_id}' cannot be had: {self.problem}. "
            "It was never prepared here, so there is no copy. Register it again."
        )


@dataclass
class InvalidVersionReference(RegistryError):
    given: str

    @property
    def detail(self) -> str:
        return f"'{self.given}' is neither a version number nor an alias. Give a number such as 3, or a name such as champion."


class RouteWriteRefused(SwitchyardError):
    """The routes were left as they were."""


@dataclass
class FenceLost(RouteWriteRefused):
    model_id: str
    holder: str
    token: int
    current: int

    @property
    def detail(self) -> str:
        return (
            f"'{self.holder}' no longer holds '{self.model_id}' (its token {self.token}, current {self.current}): "
            "somebody else took over. The routes were left as they are."
        )


@dataclass
class RoutesInvalid(RouteWriteRefused):
    model_id: str
    problem: str

    @property
    def detail(self) -> str:
        return f"The routes of '{self.model_id}' were left as they are: {self.problem}"


@dataclass
class LeaseHeld(SwitchyardError):
    name: str
    holder: str
    seconds_left: float

    @property
    def detail(self) -> str:
        return f"'{self.name}' is held by {self.holder} for another {self.seconds_left:.1f} s."


class ChangeRefused(SwitchyardError):
    """What was asked about a change cannot be; nothing was done."""


@dataclass
class ChangeNotFound(ChangeRefused):
    change_id: str

    @property
    def detail(self) -> str:
        return f"There is no change '{self.change_id}'. GET /ml/changes lists all."


@dataclass
class ChangeUnderWay(ChangeRefused):
    model_id: str
    change_id: str
    target: str
    state: str

    @property
    def detail(self) -> str:
        return (
            f"Model '{self.model_id}' has a change under way: {self.change_id} to version {self.target}, "
            f"{self.state}. Wait for its end, or cancel it (POST /ml/changes/{self.change_id}/cancel)."
        )


@dataclass
class ChangeMovedOn(ChangeRefused):
    """It is in another state than the caller needs, or believed."""

    change_id: str
    state: str

    @property
    def detail(self) -> str:
        return f"Change {self.change_id} is {self.state} by now: that cannot be done to it any more."


@dataclass
class IdempotencyKeyReused(ChangeRefused):
    key: str
    change_id: str

    @property
    def detail(self) -> str:
        return (
            f"The Idempotency-Key '{self.key}' was used for another wish, change {self.change_id}. "
            "Send the same body to get that change, or a new key for a new wish."
        )


@dataclass
class DataPlaneUnreachable(SwitchyardError):
    url: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"The data plane at {self.url} does not answer: {self.problem}. Try again shortly; "
            "if it stays so, see whether it runs ('switchyard doctor')."
        )


@dataclass
class DemoFailed(SwitchyardError):
    problem: str
    advice: str

    @property
    def detail(self) -> str:
        return f"The demo stopped: {self.problem}. {self.advice}"


class ApiError(SwitchyardError):
    """The command line asked over HTTP and did not get what it asked for."""


@dataclass
class ApiUnreachable(ApiError):
    url: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"Nothing answers at {self.url}: {self.problem}. "
            "Start everything with 'switchyard up', or name another address with --url."
        )


@dataclass
class ApiRefused(ApiError):
    """The server's own words: its error's name, its text, and the facts of its answer."""

    status: int
    error: str
    said: str
    answer: dict[str, Any]

    @property
    def detail(self) -> str:
        return self.said


@dataclass
class ApiNotReady(ApiRefused):
    """Asked again a little later it may well work: 429 or 503."""

    retry_after: float  # seconds


@dataclass
class InputUnusable(SwitchyardError):
    """What the user gave to the command line cannot be sent."""

    source: str  # a file, or an option
    problem: str

    @property
    def detail(self) -> str:
        return f"{self.source}: {self.problem}"


@dataclass
class ForeignHost(SwitchyardError):
    host: str

    @property
    def detail(self) -> str:
        return (
            f"Requests for host '{self.host}' are not answered here, so that no web page can reach this server through "
            "a browser. If the name is yours, add it to SWITCHYARD_ALLOWED_HOSTS."
        )


@dataclass
class ForeignOrigin(SwitchyardError):
    origin: str

    @property
    def detail(self) -> str:
        return f"Requests from pages of '{self.origin}' are refused. If the page is yours, add it to SWITCHYARD_ALLOWED_ORIGINS."


class StartRefused(SwitchyardError):
    """`switchyard up` did not start anything."""


@dataclass
class PortTaken(StartRefused):
    part: str
    port: int
    setting: str
    owner: str

    @property
    def detail(self) -> str:
        return f"Port {self.port}, wanted for the {self.part}, is taken by {self.owner}. End that, or choose another with {self.setting}."


@dataclass
class AlreadyRunning(StartRefused):
    folder: str
    pid: int

    @property
    def detail(self) -> str:
        return (
            f"Switchyard already runs on {self.folder} (process {self.pid}). End it there with Ctrl-C, or start this one "
            "on another folder with SWITCHYARD_DATA_FOLDER and other ports."
        )


@dataclass
class FolderNotWritable(StartRefused):
    folder: str
    setting: str
    problem: str

    @property
    def detail(self) -> str:
        return f"Cannot write to {self.folder}: {self.problem}. Check its rights and free space, or set {self.setting}."


@dataclass
class PortShared(StartRefused):
    port: int
    parts: list[str]
    settings: list[str]

    @property
    def detail(self) -> str:
        return (
            f"Port {self.port} is set for more than one part: {', '.join(self.parts)}. "
            f"Give each its own with {' and '.join(self.settings)}."
        )


@dataclass
class HostNotUsable(StartRefused):
    host: str
    setting: str
    problem: str

    @property
    def detail(self) -> str:
        return (
            f"No server can listen on {self.host}: {self.problem}. Set {self.setting} to an address of this machine, "
            "such as 127.0.0.1."
        )


class StartFailed(SwitchyardError):
    """`switchyard up` started processes, one of them did not come up, and all were ended again."""


@dataclass
class PartEnded(StartFailed):
    part: str
    outcome: str
    log_file: str
    last_lines: list[str]

    @property
    def detail(self) -> str:
        return _with_log(f"The {self.part} {self.outcome} while it was starting.", self.log_file, self.last_lines)


@dataclass
class PartNotReady(StartFailed):
    part: str
    seconds: float
    log_file: str
    last_lines: list[str]

    @property
    def detail(self) -> str:
        return _with_log(
            f"The {self.part} did not answer within {self.seconds:g} s (SWITCHYARD_START_TIMEOUT).",
            self.log_file,
            self.last_lines,
        )


def _with_log(sentence: str, log_file: str, last_lines: list[str]) -> str:
    lines = "".join(f"\n  {each}" for each in last_lines)
    said = f"It said last:{lines}" if lines else "It said nothing."
    return f"{sentence} Everything else was ended again. {said}\nThe whole log: {log_file}"


@dataclass
class UnknownPart(SwitchyardError):
    part: str
    known: list[str]

    @property
    def detail(self) -> str:
        return f"There is no part '{self.part}'. Parts: {', '.join(self.known)}."
