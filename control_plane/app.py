"""The control plane's application: its resources, behind the guard, over one set of services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from control_plane.api import changes, config, errors, health, metrics, models, predict, promote, status
from control_plane.api.guard import Guard
from control_plane.duties import on_duty
from control_plane.services import Services

DESCRIPTION = """
Serve models from an MLflow registry, watch them, compare them, and roll back to what was good.

Times are UTC in ISO 8601, durations seconds, versions texts. Every error is
`{"error": name, "detail": what is wrong and the way out, ...facts}`. Writes take JSON.
"""


def create_app(services: Services) -> ASGIApp:
    """The ASGI application over these services, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with services.data_plane, on_duty(services):
            yield
        services.close()

    # Its pages load their scripts from here, not from the internet.
    app = FastAPIOffline(title="Switchyard", version=version("switchyard"), description=DESCRIPTION, lifespan=lifespan)
    app.state.services = services
    app.state.metrics = metrics.Metrics()
    errors.install(app)
    for resource in (predict, models, status, config, promote, changes, health, metrics):
        app.include_router(resource.router)

    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    return Guard(app, services.settings, app.state.metrics)
