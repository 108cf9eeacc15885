"""What an item found: whether it held, the figures, and what was wrong."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Verdict:
    """One item's result: it passed when there is no problem."""

    number: int
    title: str
    figures: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None
    """Why nothing was tried, where nothing was."""

    @property
    def passed(self) -> bool:
        return not self.problems

    def figure(self, name: str, value: object) -> None:
        """Note a figure, in the order in which they are shown."""
        self.figures.append((name, str(value)))

    def skip(self, reason: str) -> None:
        """Nothing can be tried here."""
        self.skipped = reason

    def require(self, held: bool, problem: str) -> None:  # noqa: FBT001 - reads as the sentence it is
        """Note a problem unless the condition held."""
        if not held:
            self.problems.append(problem)


def spread(seconds: Sequence[float]) -> str:
    """Median and maximum, as shown; in milliseconds where seconds would round to nothing."""
    if not seconds:
        return "-"
    if max(seconds) < 1:
        return f"p50 {statistics.median(seconds) * 1000:.0f} ms, max {max(seconds) * 1000:.0f} ms"
    return f"p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s"
