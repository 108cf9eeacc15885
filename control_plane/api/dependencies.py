"""What the endpoints are given."""

from typing import cast

from fastapi import Request

from control_plane.services import Services


def get_services(request: Request) -> Services:
    """The services that the application's lifespan built."""
    return cast("Services", request.app.state.services)
