"""What the commands that ask the API share: their options, their exit statuses, and where they print."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from control_plane.settings import load_settings

if TYPE_CHECKING:  # HTTP takes a third of a second to import, which `switchyard --help` must not wait for
    from control_plane.client import Client

STATUSES = (
    "Exit status: 0 it worked; 1 the server refused, or the change was rejected, restored or failed; "
    "2 wrong arguments or input; 3 nothing answers, or it is not ready: try again; 130 Ctrl-C."
)

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="ADDRESS", help="The control plane's address; without it, that of the settings."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a registered model.")]

console = Console()
beside = Console(stderr=True)
"""For progress and remarks: what a pipe takes from standard output stays clean."""


def connect(url: str | None, connections: int = 10) -> "Client":
    """A client of the control plane at `url`, or where the settings say it is.

    Raises:
        SettingsInvalid: no address was given, and the settings that would say it are wrong.
    """
    from control_plane.client import Client

    return Client(url or load_settings().control_plane_url, connections)


def print_json(value: Any) -> None:
    """JSON on standard output; coloured where a person looks."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    if sys.stdout.isatty():
        console.print_json(text)
    else:
        sys.stdout.write(json.dumps(value, default=str, ensure_ascii=False, indent=2) + "\n")


def when(moment: object) -> str:
    """An ISO 8601 time, to the minute."""
    return str(moment or "")[:16].replace("T", " ")


def figure(value: object) -> str:
    """A number, short enough for a table; anything else is nothing."""
    return f"{value:.3f}" if isinstance(value, float) else ""


def size(value: object) -> str:
    """Bytes, readable."""
    return f"{value / 1000:,.0f} kB" if isinstance(value, int) else ""
