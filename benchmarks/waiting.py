"""Waiting for conditions with a guard against hanging, and ending in good order when somebody interrupts."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Answer = TypeVar("Answer")

_POLL_SECONDS = 0.02
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NotInTime(Exception):
    """A condition did not come true within the time that guards against hanging."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"waited {seconds:.0f} s for {what}")


def wait_for(condition: Callable[[], Answer | None], what: str, seconds: float) -> Answer:
    """The first true answer of `condition`.

    Raises:
        NotInTime: there was none within `seconds`, which is several times what it should take.
    """
    until = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > until:
            raise NotInTime(what, seconds)
        time.sleep(_POLL_SECONDS)
    return answer


@contextmanager
def interruptible() -> Iterator[None]:
    """The first Ctrl-C, TERM or HUP raises KeyboardInterrupt, so that every `finally` ends its processes.

    Further ones are not heard: they would break off that very work, which is bounded.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for each in _INTERRUPTIONS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in _INTERRUPTIONS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
