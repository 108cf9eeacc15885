"""What is asked, of whom, and what came of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A server and the requests it is asked in turn."""

    port: int
    path: str
    bodies: tuple[bytes, ...]

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def requests(self) -> list[bytes]:
        """Each body as a whole HTTP request."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            "content-type: application/json\r\ncontent-length: "
        )
        return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in self.bodies]


@dataclass(frozen=True)
class Load:
    """One measurement, as the generator saw it. Times in seconds; percentiles over requests answered with 200."""

    seconds: float
    answered: int  # with 200
    errors: dict[str, int]  # what -> how many
    p50: float
    p95: float
    p99: float
    generator_cpu: float  # share of one core that the generator took
    generator_late: float | None  # 99th percentile of how late the generator itself was; None: it does not say

    @property
    def rate(self) -> float:
        """Requests answered with 200, per second."""
        return self.answered / self.seconds
