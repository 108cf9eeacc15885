"""A light load beside the killing: asks each address ten times a second and remembers every answer."""

import http.client
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_EVERY_SECONDS = 0.1
_ANSWER_WITHIN = 10.0
# A bound for a run that never ends: half an hour of it.
_MOST_ANSWERS = 18_000


@dataclass(frozen=True)
class Answer:
    """One request: from when to when on the monotonic clock, and what was wrong with it, if anything."""

    began: float
    ended: float
    problem: str | None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Load:
    """One thread for each address, one request under way in each; runs while the block lasts."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        """`urls`: name of the part -> address."""
        self.answers: dict[str, list[Answer]] = {name: [] for name in urls}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=each, daemon=True) for each in urls.items()]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join(2 * _ANSWER_WITHIN)

    def good_since(self, moment: float) -> int:
        """How many good answers each address has given to requests made since then, at least."""
        return min(
            sum(1 for each in reversed(answers) if each.began >= moment and not each.problem)
            for answers in self.answers.values()
        )

    def _ask(self, name: str, url: str) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())) and len(self.answers[name]) < _MOST_ANSWERS:
            began = time.monotonic()
            problem = _problem_of(url)
            self.answers[name].append(Answer(began, time.monotonic(), problem))
            due = max(due + _EVERY_SECONDS, began)


def _problem_of(url: str) -> str | None:
    """On a connection of its own: one that was left over from before a kill would fail for that reason alone."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_ANSWER_WITHIN)
    try:
        connection.request("GET", address.path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return None if answer.status == http.client.OK else f"{answer.status}: {body[:200].decode(errors='replace')}"
