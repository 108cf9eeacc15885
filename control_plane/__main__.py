"""`python -m control_plane`: the control plane alone, as `switchyard up` starts it."""

import sys

import uvicorn

from control_plane.app import create_app
from control_plane.services import build_services
from control_plane.settings import load_settings
from serving.errors import SwitchyardError
from serving.logs import configure_logging


def main() -> int:
    """Serve until told to end; 2 for wrong settings."""
    try:
        settings = load_settings()
        configure_logging("control-plane", settings.log_level)
        app = create_app(build_services(settings))
    except SwitchyardError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 2
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.control_plane_port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_timeout),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
