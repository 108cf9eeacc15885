"""The body of a request, read whole before anybody looks at it, within a size and a time."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serving.errors import BodyTooLarge, BodyTooSlow

BODY_SECONDS = 30.0
"""How long a client has to send its body; uvicorn itself would wait for ever."""


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
        raise BodyTooLarge(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(receive, limit)
    except TimeoutError:
        raise BodyTooSlow(BODY_SECONDS) from None


def replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then goes on with what comes after it."""
    waiting: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise BodyTooLarge(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
