"""The body of a request, read whole before anybody looks at it, within a size and a time."""

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serving.errors import BodyTooLarge, BodyTooSlow

BODY_SECONDS = 30.0
"""How long a client has to send its body; uvicorn itself would wait for ever."""

# How much of a body that is too large is taken in, in limits and in seconds; nothing of it is kept.
_DISCARDED_LIMITS = 8
_DISCARD_SECONDS = 5.0


class ClientLeft(Exception):
    """The connection was closed before the body was whole: nobody is left to answer."""


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: it is, or says that it is, of more than `limit` bytes.
        BodyTooSlow: it took too long.
        ClientLeft: the rest will not come.
    """
    announced = headers.get("content-length", "")
    # Before the first receive(): a client that waits for "100 Continue" then never sends its body at all.
    if announced.isdecimal() and int(announced) > limit:
        if "expect" not in headers:
            await _discard(receive, limit * _DISCARDED_LIMITS)
        raise BodyTooLarge(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read(receive, limit)
    except TimeoutError:
        raise BodyTooSlow(BODY_SECONDS) from None
    if body is None:
        await _discard(receive, limit * _DISCARDED_LIMITS)
        raise BodyTooLarge(limit)
    return body


def replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then goes on with what comes after it."""
    waiting: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None, with more of it to come, once it is over the limit."""
    parts: list[bytes] = []
    size = 0
    while True:
        part, has_more = await _part(receive)
        size += len(part)
        if size > limit:
            if has_more:
                return None
            raise BodyTooLarge(limit)
        parts.append(part)
        if not has_more:
            return b"".join(parts)


async def _discard(receive: Receive, most: int) -> None:
    """Take in what a client sends on before it reads: it would see a broken connection instead of our answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            has_more = True
            while has_more and most > 0:
                part, has_more = await _part(receive)
                most -= len(part)


async def _part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message.get("body", b""), message.get("more_body", False)
