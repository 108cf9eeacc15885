"""One answer per request id of a client: repetitions within ten minutes get it again, concurrent ones share it.

What is not remembered here is looked for on disk and in the database: docs/decisions/0011-one-answer-per-request-id.md
"""

import asyncio
import itertools
from collections import OrderedDict
from dataclasses import dataclass

from serving.errors import RequestIdReused

REMEMBERED_FOR = 600.0
"""Seconds."""
_MOST_BYTES = 64 * 2**20
_OVERHEAD = 500
_LOOKED_AT = 16  # at most, for each new one: so more are forgotten than come, and none waits for long


@dataclass(slots=True)
class _Entry:
    digest: bytes
    answer: "asyncio.Future[bytes]"
    until: float
    size: int = _OVERHEAD


class RememberedAnswers:
    """The answers of one HTTP process, to the byte, and those still to come. See InferenceEndpoint for all others."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._most_bytes = most_bytes
        self._bytes = 0
        self._loop = asyncio.get_running_loop()

    def find(self, key: bytes, digest: bytes, request_id: str) -> "asyncio.Future[bytes] | None":
        """The answer to the same question, perhaps still to come; None for a new one. Await it shielded.

        Raises:
            RequestIdReused: the id belongs to another body.
        """
        entry = self._entries.get(key)
        if entry is None or (entry.answer.done() and entry.until <= self._loop.time()):
            return None
        if entry.digest != digest:
            raise RequestIdReused(request_id)
        return entry.answer

    def expect(self, key: bytes, digest: bytes) -> None:
        """The answer to this question is on its way: `settle` or `give_up` follows."""
        self._drop(key)
        self._make_room()
        self._entries[key] = _Entry(digest, self._loop.create_future(), self._loop.time() + REMEMBERED_FOR)
        self._bytes += _OVERHEAD

    def settle(self, key: bytes, answer: bytes) -> None:
        """It has come."""
        entry = self._entries.get(key)
        if entry is not None and not entry.answer.done():
            entry.answer.set_result(answer)
            entry.size += len(answer)
            self._bytes += len(answer)

    def give_up(self, key: bytes, error: BaseException) -> None:
        """There is none: whoever waits for it gets the error, and the next one may ask anew."""
        entry = self._drop(key)
        if entry is not None and not entry.answer.done():
            entry.answer.set_exception(error)
            entry.answer.exception()  # nobody may be waiting, which asyncio would complain about

    def _drop(self, key: bytes) -> _Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
        return entry

    def _make_room(self) -> None:
        """Forget what is over its time, and the oldest beyond the limit. One on its way is never forgotten."""
        now = self._loop.time()
        for key, oldest in list(itertools.islice(self._entries.items(), _LOOKED_AT)):
            if oldest.until > now and self._bytes <= self._most_bytes:
                return
            if oldest.answer.done():
                self._drop(key)
            else:
                self._entries.move_to_end(key)  # it is looked at again when it is done
