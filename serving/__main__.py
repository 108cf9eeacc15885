"""`python -m serving`: the data plane, until SIGTERM or Ctrl-C. Exit status 1: port taken; 2: a setting is wrong."""

import errno
import os
import signal
import socket
import sys
from multiprocessing import forkserver, set_forkserver_preload

from pydantic import ValidationError

from serving.errors import CannotStart, PortTaken, WrongSetting
from serving.logs import configure_logging, mask
from serving.settings import ServingSettings


def main() -> int:
    """Run the data plane. Returns the exit status."""
    parent = os.getppid()
    for each in (signal.SIGTERM, signal.SIGINT):  # until the server has handlers of its own
        signal.signal(each, lambda *_: sys.exit(0))
    try:
        _serve(_load_settings(), parent)
    except CannotStart as problem:
        print(mask(problem.detail), file=sys.stderr)  # noqa: T201  # for the person who started it, so no JSON
        return 1 if isinstance(problem, PortTaken) else 2
    return 0


def _serve(settings: ServingSettings, parent: int) -> None:
    configure_logging("data-plane", settings.log_level)
    with _listen(settings.host, settings.data_plane_port) as listener:
        _warm_fork_server()
        # Only here, while the fork server imports the same on another core.
        from serving.server import ModelServer
        from serving.worker import end_with_parent

        if "SWITCHYARD_STACK_ID" in os.environ:
            end_with_parent(parent)
        ModelServer(settings, listener).run()


def _load_settings() -> ServingSettings:
    try:
        return ServingSettings()
    except ValidationError as problem:
        first = problem.errors()[0]
        variable = f"SWITCHYARD_{first['loc'][0]}".upper()
        raise WrongSetting(variable, f"'{first['input']}' was given. {first['msg']}") from None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            raise PortTaken(host, port, "SWITCHYARD_DATA_PLANE_PORT") from None
        raise WrongSetting("SWITCHYARD_HOST", f"'{host}' is no address of this machine") from None


def _warm_fork_server() -> None:
    # A worker brings no threads along when it forks, and uses one core; several would fight over all of them.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    # What workers are made of, and what most models are: imported once, and its memory shared by all of them.
    set_forkserver_preload(
        [
            "serving.worker",
            "serving.worker_process",
            "sklearn.calibration",
            "sklearn.compose",
            "sklearn.ensemble",
            "sklearn.impute",
            "sklearn.linear_model",
            "sklearn.pipeline",
            "sklearn.preprocessing",
            "serving.agent.process",
            "serving.shipper",
            "serving.fork_server",  # the last
        ]
    )
    forkserver.ensure_running()


if __name__ == "__main__":
    sys.exit(main())
