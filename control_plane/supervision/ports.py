"""Before anything is started: is every port free, and if not, who has it."""

import errno
import socket
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import psutil

from control_plane.errors import HostNotUsable, PortShared, PortTaken
from control_plane.supervision.processes import ProcessSpec
from serving.logs import mask

_COMMAND_LENGTH = 60
_STRANGER = "a process of another user"


def check_ports(host: str, specs: Iterable[ProcessSpec]) -> None:
    """Return when every port of `specs` can be bound on `host`.

    Raises:
        PortShared: two parts are set to the same port.
        PortTaken: somebody has one already; says who.
        HostNotUsable: `host` is no address of this machine.
    """
    with_port = [each for each in specs if each.port is not None]
    _refuse_shared(with_port)
    for spec in with_port:
        _refuse_taken(host, spec)


def owner_of(port: int) -> str:
    """Who listens on a port, in words: "python (process 123, user x: command line)"."""
    pids = _listeners(port)
    if not pids:
        return _STRANGER
    # Workers share the socket of the one who opened it: name the eldest, whose end ends the others.
    return _described(min(pids, key=_age))


def _refuse_shared(specs: Sequence[ProcessSpec]) -> None:
    by_port = sorted(specs, key=lambda each: each.port or 0)
    for port, group in groupby(by_port, key=lambda each: each.port or 0):
        parts = list(group)
        if len(parts) > 1:
            raise PortShared(port, [each.title for each in parts], [each.port_setting or "" for each in parts])


def _refuse_taken(host: str, spec: ProcessSpec) -> None:
    port = spec.port or 0
    problem = _bind_problem(host, port)
    if problem is None:
        return
    if problem.errno == errno.EADDRINUSE:
        raise PortTaken(spec.title, port, spec.port_setting or "", owner_of(port))
    raise HostNotUsable(host, "SWITCHYARD_HOST", problem.strerror or str(problem))


def _bind_problem(host: str, port: int) -> OSError | None:
    """Why a server could not listen there, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            # As servers do: connections that are still closing down do not count.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            trial.listen(1)
    except OSError as error:
        return error
    return None if not _answers(host, port, family) else OSError(errno.EADDRINUSE, "address in use")


def _answers(host: str, port: int, family: socket.AddressFamily) -> bool:
    """Some systems let a second server bind beside one that listens on all addresses: ask as a client would."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        with socket.socket(family, socket.SOCK_STREAM) as caller:
            caller.settimeout(1.0)
            return caller.connect_ex((reachable, port)) == 0
    except OSError:
        return False


def _listeners(port: int) -> list[int]:
    """Pids that listen on the port, as far as we may know."""
    try:
        connections = [(each.pid, each) for each in psutil.net_connections(kind="tcp")]
    except (psutil.Error, OSError):
        # macOS lists every process's connections to root only: look at each process that we may look at.
        connections = [(process.pid, each) for process in psutil.process_iter() for each in _connections(process)]
    return [
        pid
        for pid, each in connections
        if pid and each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
    ]


def _connections(process: psutil.Process) -> Sequence[Any]:
    try:
        return process.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return []


def _age(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return float("inf")


def _described(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            name, user, command = process.name(), process.username(), mask(" ".join(process.cmdline()))
    except psutil.Error:
        return f"process {pid}"
    shown = command if len(command) <= _COMMAND_LENGTH else command[: _COMMAND_LENGTH - 3] + "..."
    return f"{name} (process {pid}, user {user}: {shown})"
