"""What the command line asks over HTTP; every refusal is an error with the server's own words."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
import orjson

from control_plane.errors import ApiNotReady, ApiRefused, ApiUnreachable, InputUnusable

Json = dict[str, Any]
"""One JSON object, in the shape that the API documents."""

TERMINAL = frozenset({"succeeded", "rejected", "cancelled", "restored", "failed"})
"""States in which a change stays."""

POLL_SECONDS = 0.25
# A model's own deadline may be an hour; the server ends every request by then.
_LONGEST_SECONDS = 3700.0
_NOT_READY = (429, 503)


class Client:
    """Asks one address. Safe to use from several threads at once.

    Every method raises:
        ApiUnreachable: nothing answers there, or the connection broke.
        ApiNotReady: 429 or 503; worth another try.
        ApiRefused: any other answer but 2xx.
        InputUnusable: what should be sent is nothing that JSON can carry.
    """

    def __init__(self, url: str, connections: int = 10, timeout: float = _LONGEST_SECONDS) -> None:
        """`url`: of the control plane. `timeout`: seconds that an answer may take."""
        self.url = url.rstrip("/")
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            patience = httpx.Timeout(timeout, connect=5.0)
            self._http = httpx.Client(base_url=self.url, timeout=patience, limits=limits)
        except (httpx.InvalidURL, ValueError) as error:
            raise ApiUnreachable(self.url, f"that is no address ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def models(self) -> Json:
        """Every model: `{"items", "unavailable"}`."""
        return self._ask("GET", "/ml/models")

    def versions(self, model_id: str) -> Json:
        """All versions of a model, newest first, page after page: `{"items", "unavailable"}`."""
        page = self._ask("GET", f"/ml/models/{_quoted(model_id)}/versions")
        items = list(page["items"])
        while page.get("next"):
            page = self._ask("GET", f"/ml/models/{_quoted(model_id)}/versions", query={"before": page["next"]})
            items += page["items"]
        return {**page, "items": items, "next": None}

    def signature(self, model_id: str, version: str) -> Json | None:
        """The signature of one version; None where it has none, or there is no such version."""
        if not version.isdecimal():
            return None
        query = {"limit": "1", "before": str(int(version) + 1)}
        items = self._ask("GET", f"/ml/models/{_quoted(model_id)}/versions", query=query)["items"]
        found: Json | None = items[0]["signature"] if items and items[0]["version"] == version else None
        return found

    def status(self, model_id: str) -> Json:
        """What serves, where, and how."""
        return self._ask("GET", f"/ml/models/{_quoted(model_id)}/status")

    def configure(self, model_id: str, changes: Json) -> Json:
        """Set some fields of the model's ModelServingConfig; the new one, whole."""
        return self._ask("PUT", f"/ml/models/{_quoted(model_id)}/config", changes)

    def promote(self, model_id: str, wanted: Json) -> Json:
        """Begin to let `wanted["target"]` serve; the change, as it begins."""
        return self._ask("POST", f"/ml/models/{_quoted(model_id)}/promote", wanted)

    def change(self, change_id: str) -> Json:
        """A promotion or rollback as it stands."""
        return self._ask("GET", f"/ml/changes/{_quoted(change_id)}")

    def follow(self, change: Json, patience: float = 30.0) -> Iterator[Json]:
        """The change as it is, then again each time that it moved, until it stays where it is.

        An address that does not answer meanwhile is asked again for `patience` seconds: the change goes on without us.
        """
        yield change
        answered = time.monotonic()
        while change["state"] not in TERMINAL:
            time.sleep(POLL_SECONDS)
            try:
                latest = self.change(change["id"])
            except (ApiUnreachable, ApiNotReady):
                if time.monotonic() - answered > patience:
                    raise
                continue
            answered = time.monotonic()
            if latest != change:
                yield latest
            change = latest

    def predict(self, model_id: str, question: Json) -> Json:
        """The answer to one record or to columns of equal length."""
        return self._ask("POST", f"/ml/models/{_quoted(model_id)}/predict", question)

    def infer(self, model_id: str, version: str, question: Json) -> Json:
        """The answer of one loaded version, routed or not, in the Open Inference Protocol."""
        return self._ask("POST", f"/v2/models/{_quoted(model_id)}/versions/{_quoted(version)}/infer", question)

    def _ask(self, method: str, path: str, body: Json | None = None, query: dict[str, str] | None = None) -> Json:
        content = None if body is None else _written(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            answer = self._http.request(method, path, content=content, headers=headers, params=query)
        except httpx.UnsupportedProtocol as error:
            raise ApiUnreachable(self.url, "an address starts with http:// or https://") from error
        except httpx.TransportError as error:
            raise ApiUnreachable(self.url, str(error) or type(error).__name__) from error
        return _read(answer)


def _quoted(name: str) -> str:
    return quote(name, safe="", errors="surrogateescape")  # bytes of the command line that are no text, as they are


def _written(body: Json) -> bytes:
    try:
        return orjson.dumps(body, default=str)
    except TypeError as error:  # also orjson.JSONEncodeError
        raise InputUnusable("what was given", f"cannot be sent as JSON: {error}") from error


def _read(answer: httpx.Response) -> Json:
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        body = None
    if answer.is_success and isinstance(body, dict):
        return cast("Json", body)
    if not isinstance(body, dict) or "error" not in body:
        body = {"error": "UnexpectedAnswer", "detail": _odd(answer)}
    facts = (answer.status_code, str(body["error"]), str(body.get("detail", "")), body)
    if answer.status_code in _NOT_READY:
        raise ApiNotReady(*facts, retry_after=_seconds(answer.headers.get("Retry-After", "")))
    raise ApiRefused(*facts)


def _odd(answer: httpx.Response) -> str:
    said = " ".join(answer.text.split())[:200]
    return f"{answer.request.url} answers {answer.status_code}, not as Switchyard does ({said}). Is the address right?"


def _seconds(header: str) -> float:
    try:
        return max(0.0, float(header))
    except ValueError:  # a date, which no server of ours sends
        return 1.0
