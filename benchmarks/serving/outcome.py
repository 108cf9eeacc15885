"""What is asked, of whom, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """One request: where it goes, what it carries, and which of the model's records that is."""

    path: str
    body: bytes
    record: int


@dataclass(frozen=True)
class Target:
    """A server and the requests it is asked in turn."""

    port: int
    questions: tuple[Question, ...]

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def requests(self) -> list[bytes]:
        """Each question as a whole HTTP request."""
        return [
            f"POST {each.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(each.body)}\r\n\r\n".encode()
            + each.body
            for each in self.questions
        ]


@dataclass(frozen=True)
class Load:
    """One measurement, as the generator saw it. Times in seconds; percentiles over requests answered with 200."""

    seconds: float
    answered: int  # with 200, within those seconds
    errors: Mapping[str, int]  # what -> how many; a status, or what happened instead of one
    p50: float
    p95: float
    p99: float
    generator_cpu: float  # share of one core that the generator took
    generator_late: float | None  # 99th percentile of how late the generator itself was; None: it does not say
    offered: float | None = None  # requests/s that were to arrive; None: as many as were answered
    held_back: int = 0  # requests that had to wait for a free connection; their time counts from when they were due
    refused_p99: float | None = None  # of answers with 429, since they were due
    refused_sent_p99: float | None = None  # the same since they were sent: without the wait for a connection
    retry_after: Mapping[str, int] = field(default_factory=dict)  # value of the header -> how many
    answered_in_all: int = 0  # with 200, also after those seconds; open loop only
    thirds: tuple[float, ...] = ()  # median time in the first, second and last third; open loop only

    @property
    def rate(self) -> float:
        """Requests answered with 200, per second."""
        return self.answered / self.seconds


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of these do not exceed; NaN of none. `ordered` ascends."""
    if not ordered:
        return float("nan")
    return ordered[max(0, min(len(ordered) - 1, -int(-len(ordered) * percent // 100) - 1))]
