"""The one table from what can go wrong to status codes, and the one shape of every error's body."""

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from control_plane import errors as ours
from serving import errors as shared
from serving.errors import SwitchyardError
from serving.logs import logger

log = logger(__name__)

# The nearest class in an error's ancestry counts; a test asserts that every leaf finds one.
STATUS: dict[type[SwitchyardError], int] = {
    shared.ModelNotFound: 404,
    shared.VersionNotLoaded: 404,
    shared.NotReady: 503,
    shared.WorkerLost: 503,
    shared.ValidationFailed: 422,
    shared.RequestIdReused: 422,
    shared.TooManyRequests: 429,
    shared.DeadlineExceeded: 504,
    shared.ModelError: 500,
    shared.ModelNotLoadable: 503,
    shared.NotJson: 400,
    shared.WrongContentType: 415,
    shared.BodyTooLarge: 413,
    shared.DatabaseUnavailable: 503,
    shared.BodyTooSlow: 408,
    shared.PathNotFound: 404,
    shared.MethodNotAllowed: 405,
    shared.InternalError: 500,
    shared.BrokenChannel: 500,
    shared.CannotStart: 500,
    shared.ArtifactMissing: 409,
    shared.ArtifactDamaged: 409,
    shared.ArtifactFolderNotWritable: 503,
    ours.RegistryUnreachable: 503,
    ours.RegistryRefused: 409,
    ours.VersionNotFound: 404,
    ours.AliasNotFound: 404,
    ours.VersionReplaced: 409,
    ours.VersionLost: 409,
    ours.InvalidVersionReference: 422,
    ours.FenceLost: 409,
    ours.RoutesInvalid: 422,
    ours.LeaseHeld: 409,
    ours.ChangeNotFound: 404,
    ours.ChangeUnderWay: 409,
    ours.ChangeMovedOn: 409,
    ours.IdempotencyKeyReused: 422,
    ours.DataPlaneUnreachable: 503,
    ours.ForeignHost: 403,
    ours.ForeignOrigin: 403,
    ours.SettingsInvalid: 500,
    ours.DemoFailed: 500,
    ours.ApiError: 500,
    ours.InputUnusable: 500,
    ours.StartRefused: 500,
    ours.StartFailed: 500,
    ours.UnknownPart: 404,
}
RETRY_AFTER_SECONDS = 2

# What can become of any request, and of any that has a body: see guard.py and _invalid.
EVERY: tuple[type[SwitchyardError], ...] = (ours.ForeignHost, ours.ForeignOrigin, shared.InternalError)
WITH_BODY: tuple[type[SwitchyardError], ...] = (
    shared.NotJson,
    shared.BodyTooSlow,
    shared.BodyTooLarge,
    shared.WrongContentType,
    shared.ValidationFailed,
)


class ErrorBody(BaseModel):
    """Every error: its name, what is wrong and the way out, and the facts."""

    model_config = ConfigDict(extra="allow")

    error: str
    detail: str


def status_of(error: SwitchyardError) -> int:
    """The status code of an error.

    Raises:
        LookupError: nobody decided one, which a test finds before a user does.
    """
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    raise LookupError(type(error).__name__)


def response(error: SwitchyardError) -> JSONResponse:
    """The answer for an error of ours."""
    status = status_of(error)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    if isinstance(error, shared.BodyTooLarge | shared.BodyTooSlow):
        headers = {"Connection": "close"}  # what is still to come of the body is not waited for
    return JSONResponse(jsonable_encoder(error.body()), status, headers)


def documented(*kinds: type[SwitchyardError]) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these errors, besides those that can become of every request."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in dict.fromkeys((*EVERY, *kinds)):
        status = next(STATUS[each] for each in kind.__mro__ if each in STATUS)
        said = by_status.setdefault(status, {"model": ErrorBody, "description": ""})
        said["description"] = ", ".join(filter(None, [said["description"], kind.__name__]))
    return by_status


def install(app: FastAPI) -> None:
    """Let every error of the application leave in our shape, without a stack trace."""
    app.add_exception_handler(SwitchyardError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SwitchyardError)  # noqa: S101 (for the type checker; registered for this class only)
    return response(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (as above)
    malformed = next((each for each in error.errors() if each["type"] == "json_invalid"), None)
    if malformed is not None:
        return response(shared.NotJson(str(malformed.get("ctx", {}).get("error", malformed["msg"]))))
    fields = [
        {"path": _path(each["loc"]), "problem": each["msg"], "expected": _expected(each)} for each in error.errors()
    ]
    detail = "; ".join(f"{each['path']}: {each['problem']}" for each in fields)
    return JSONResponse({"error": "ValidationFailed", "detail": detail, "fields": fields}, 422)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (as above)
    if error.status_code == 404:
        body = shared.PathNotFound(request.url.path, sorted(request.app.openapi()["paths"])).body()
    elif error.status_code == 405:
        allowed = _methods(request)
        body = shared.MethodNotAllowed(request.method, allowed).body()
        return JSONResponse(body, 405, {"Allow": ", ".join(allowed)})
    elif error.status_code == 400:
        body = shared.NotJson("it is not UTF-8, or nested too deeply").body()  # all that FastAPI has it for
    else:
        body = {"error": "HttpError", "detail": str(error.detail)}
    return JSONResponse(body, error.status_code, error.headers)


def _methods(request: Request) -> list[str]:
    """Of the whole path: the framework knows those of its first route only, where each method is a route of its own."""
    template = getattr(request.scope.get("route"), "path", "")
    described = request.app.openapi()["paths"].get(template, {})
    return sorted(method.upper() for method in described)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", method=request.method, path=request.url.path, exc_info=error)
    request_id = str(structlog.contextvars.get_contextvars().get("request_id", ""))
    return JSONResponse(shared.InternalError(request_id).body(), 500)


def _path(location: Sequence[int | str]) -> str:
    """`("query", "limit")` as `limit`: the caller's name of the field, not the framework's place of it."""
    return ".".join(str(part) for part in location if part not in ("body", "query", "path", "header")) or "body"


def _expected(problem: dict[str, Any]) -> str:
    facts = {key: value for key, value in problem.get("ctx", {}).items() if key != "error"}
    return ", ".join(f"{key} {value}" for key, value in facts.items()) or str(problem["type"]).replace("_", " ")
