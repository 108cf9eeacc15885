"""Waiting for sockets until a moment, to the microsecond: `select` of the standard library rounds up to milliseconds."""

import ctypes
import os
import selectors
import sys
from contextlib import suppress
from selectors import BaseSelector, SelectorKey

_CLOCK_MONOTONIC = 1
_NOT_WORTH_IT = 20e-6
"""Seconds that setting the timer and being woken by it take: shorter waits are not waits."""


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("value", _Moment))


class Alarm:
    """A timer among the sockets of a selector. Where the system has none (not Linux), the selector's own time-out."""

    def __init__(self, selector: BaseSelector) -> None:
        self._selector = selector
        self._timer = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer >= 0:
            selector.register(self._timer, selectors.EVENT_READ)

    def select(self, seconds: float) -> list[tuple[SelectorKey, int]]:
        """What is ready to be read, after so many seconds at the latest; at once where something is ready already."""
        ready = self._selector.select(0)
        if not ready and seconds > _NOT_WORTH_IT:
            ready = self._wait(seconds)
        return [each for each in ready if not self._has_rung(each[0])]

    def _has_rung(self, key: SelectorKey) -> bool:
        if key.fd != self._timer:
            return False
        with suppress(BlockingIOError):
            os.read(self._timer, 8)  # else it would wake us again and again
        return True

    def _wait(self, seconds: float) -> list[tuple[SelectorKey, int]]:
        if self._timer < 0:
            return self._selector.select(seconds)
        whole = int(seconds)
        setting = _Setting(_Moment(0, 0), _Moment(whole, max(1, int((seconds - whole) * 1e9))))
        self._libc.timerfd_settime(self._timer, 0, ctypes.byref(setting), None)
        return self._selector.select(None)
