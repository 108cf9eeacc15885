"""Client of the data plane: predict and the Open Inference Protocol passed through byte for byte, and our own probes."""

import asyncio
import string
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from control_plane.errors import DataPlaneUnreachable

Headers = list[tuple[bytes, bytes]]

# What the data plane should know of the caller's request. All else is between the caller and us.
_TO_DATA_PLANE = frozenset({b"content-type", b"accept", b"x-request-timeout", b"traceparent", b"tracestate"})
# What the caller should know of the answer; lengths and the connection are ours to say.
_TO_CALLER = frozenset(
    {b"content-type", b"retry-after", b"x-request-id", b"allow", b"content-encoding", b"traceparent"}
)
_CONNECT_SECONDS = 2.0
# The data plane keeps its own deadlines; this is for one that hangs without a word.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """What the data plane answered, untouched."""

    status: int
    headers: Headers
    body: bytes


class DataPlane:
    """One connection pool to the data plane; open it with `async with`, in the event loop that uses it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.longest_timeout = 30.0
        """Seconds: the largest `timeout` of all models, beyond which no answer is to be expected any more."""
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        # No proxy of the environment stands between two processes of one installation.
        self._client = httpx.AsyncClient(base_url=self.url, limits=limits, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def forward(
        self, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes, request_id: str
    ) -> Answer:
        """Ask what the caller asked and hand back what is answered. `target`: the raw path with its query.

        Raises:
            DataPlaneUnreachable: there is no answer.
        """
        passed = [(name, value) for name, value in headers if name.lower() in _TO_DATA_PLANE]
        passed += [(b"x-request-id", request_id.encode()), (b"accept-encoding", b"identity")]
        return await self._send(method, target, passed, body, self.longest_timeout + _GRACE_SECONDS)

    async def infer(self, model_id: str, version: str, body: bytes, seconds: float) -> Answer:
        """One inference of one loaded version, as a probe that waits for `seconds`.

        Raises:
            DataPlaneUnreachable: there is no answer.
        """
        target = f"/v2/models/{quote(model_id, safe='')}/versions/{quote(version, safe='')}/infer".encode()
        headers = [(b"content-type", b"application/json"), (b"x-request-timeout", f"{seconds:g}".encode())]
        return await self._send("POST", target, headers, body, seconds + _GRACE_SECONDS)

    async def _send(self, method: str, target: bytes, headers: Headers, body: bytes, patience: float) -> Answer:
        client = self._client
        if client is None:
            raise DataPlaneUnreachable(self.url, "the control plane is starting or stopping")
        try:
            async with asyncio.timeout(patience):
                answer = await self._ask(client, method, target, headers, body)
                try:
                    content = b"".join([chunk async for chunk in answer.aiter_raw()])
                finally:
                    await answer.aclose()
        except TimeoutError:
            raise DataPlaneUnreachable(self.url, f"no answer within {patience:g} s") from None
        except httpx.HTTPError as error:
            raise DataPlaneUnreachable(self.url, str(error) or type(error).__name__) from error
        kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() in _TO_CALLER]
        return Answer(answer.status_code, kept, content)

    async def _ask(
        self, client: httpx.AsyncClient, method: str, target: bytes, headers: Headers, body: bytes
    ) -> httpx.Response:
        """Once more where a pooled connection was closed under us, as a data plane that restarts does.

        A prediction changes nothing but the log of predictions, so asking twice is better than not being answered.
        """
        # A client may send a path that is no ASCII; on its way on it has to be.
        url = client.base_url.copy_with(raw_path=quote(target, safe=string.punctuation).encode())
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
        request = client.build_request(method, url, headers=headers, content=body, timeout=timeout)
        try:
            return await client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return await client.send(request, stream=True)
