"""What the endpoints are given."""

from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar, cast

import anyio
from fastapi import Depends, Header, Path, Request

from control_plane.services import Services
from serving.errors import ModelNotFound

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

# No control characters: PostgreSQL takes no NUL in a text, and none of them belongs in a log line.
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"

# Threads of their own for what asks our database only: a registry that hangs keeps the framework's all waiting.
_own_threads = anyio.CapacityLimiter(16)


async def get_services(request: Request) -> Services:
    """The services that the application's lifespan built. Not in a thread: there may be none left."""
    return cast("Services", request.app.state.services)


async def get_person(
    x_requested_by: Annotated[
        str, Header(max_length=200, pattern=PRINTABLE, description="Who asks; goes on record.", examples=["ada"])
    ] = "api",
) -> str:
    """Who asks."""
    return x_requested_by or "api"


ServicesOf = Annotated[Services, Depends(get_services)]
Person = Annotated[str, Depends(get_person)]
ModelId = Annotated[str, Path(max_length=500, pattern=PRINTABLE, examples=["flights"])]


async def in_own_thread(work: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
    """Call what waits for our database, and for nothing else."""
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=_own_threads)


async def require_known(services: Services, model_id: str) -> None:
    """Make sure that there is such a model. The registry is asked only for one that our database does not know.

    Raises:
        ModelNotFound: naming the known ones.
        RegistryUnreachable: it may be registered, and nobody can tell.
        DatabaseUnavailable: nobody can tell.
    """
    if await in_own_thread(services.standings.is_known, model_id):
        return
    registered = await anyio.to_thread.run_sync(services.registry.models)
    if model_id not in registered:
        known = await anyio.to_thread.run_sync(services.versions.models)
        raise ModelNotFound(model_id, [each.model_id for each in known.items])
