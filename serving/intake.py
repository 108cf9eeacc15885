"""What is taken from a request, each part checked: its id, its content type, its body."""

import asyncio
import contextlib
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from serving.errors import BodyTooLarge, BodyTooSlow, FieldProblem, ValidationFailed, WrongContentType

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = list[tuple[bytes, bytes]]

BODY_TIMEOUT = 30.0
"""Seconds a client has to send its body; uvicorn itself would wait for ever."""

# How much of a body that is too large is taken in, in limits and in seconds.
_DISCARDED_LIMITS = 8
_DISCARD_TIMEOUT = 5.0

_WANTED = frozenset(
    {b"x-request-id", b"x-request-timeout", b"content-type", b"content-length", b"expect", b"traceparent"}
)
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class ClientLeft(Exception):
    """The client closed the connection before its request was whole: nobody is left to answer."""


class Said(msgspec.Struct, frozen=True, gc=False):
    """What the headers of a request say that matters here; empty where they do not."""

    request_id: str | None  # the client's own, where it is a UUID
    timeout: bytes
    content_type: bytes
    length: bytes
    waits: bool  # for our consent before it sends its body
    traceparent: bytes


def read_headers(headers: Headers) -> Said:
    """One pass over them all."""
    found = {name: value for name, value in headers if name in _WANTED}
    given = found.get(b"x-request-id")
    return Said(
        given.decode() if given and _UUID.fullmatch(given) else None,
        found.get(b"x-request-timeout", b""),
        found.get(b"content-type", b""),
        found.get(b"content-length", b""),
        b"expect" in found,
        found.get(b"traceparent", b""),
    )


def given_timeout(given: bytes) -> float | None:
    """Seconds after which the client wants no answer any more, from X-Request-Timeout; None where it does not say.

    Raises:
        ValidationFailed: it is no positive number.
    """
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        shown = given.decode("latin-1")[:50]
        raise ValidationFailed([FieldProblem("X-Request-Timeout", f"'{shown}' is no time", "seconds, such as 0.5")])
    return seconds


async def read_json_body(said: Said, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises WrongContentType, BodyTooLarge (over `limit` bytes), BodyTooSlow, ClientLeft."""
    if said.content_type != b"application/json" and not _is_json(said.content_type):
        raise WrongContentType(said.content_type.decode("latin-1"))
    # Before the first receive(): a client that waits for "100 Continue" then never sends its body at all.
    if said.length.isdigit() and int(said.length) > limit:
        if not said.waits:
            await _discard(receive, limit * _DISCARDED_LIMITS)
        raise BodyTooLarge(limit)
    if not said.waits and _is_here(receive):
        return await _read_body(receive, limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await _read_body(receive, limit)
    except TimeoutError:
        raise BodyTooSlow(BODY_TIMEOUT) from None


def _is_here(receive: Receive) -> bool:
    """Whether uvicorn has the whole body, as nearly always: then there is nothing to wait for, and no clock to set.

    It is asked by its own attribute, which it does not promise; tests/contracts/test_uvicorn.py holds it. Without it
    the body is waited for.
    """
    return getattr(getattr(receive, "__self__", None), "more_body", True) is False


def has_left(receive: Receive) -> bool:
    """Whether uvicorn knows that the client has closed its connection meanwhile; asked in the same way."""
    return getattr(getattr(receive, "__self__", None), "disconnected", False) is True


async def _discard(receive: Receive, most: int) -> None:
    """Take in what a client sends on before it reads: it would see a broken connection instead of our answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_TIMEOUT):
            while most > 0:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientLeft
                most -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def _read_body(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        body: bytes = message.get("body", b"")
        if not (parts or message.get("more_body") or len(body) > limit):
            return body
        parts.append(body)
        size += len(parts[-1])
        if size > limit:
            raise BodyTooLarge(limit)
        if not message.get("more_body"):
            return b"".join(parts)


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
