"""`switchyard status`: what serves, where, and how."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from control_plane.commands.listing import models_table, remark, shares
from control_plane.commands.terminal import STATUSES, AsJson, Url, connect, console, print_json

Json = dict[str, Any]

_COLOURS = {
    "ready": "green",
    "degraded": "yellow",
    "loading": "yellow",
    "down": "red",
    "failed": "red",
    "evicted": "red",
}
_ELSEWHERE = ("model_path", "model_version")  # what serves stands above; --json has its folder
_ANSWERING = ("ready", "degraded")


def status(
    model_id: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Name of a model; without one, all of them.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> int:
    """Show what serves, on which replicas, and how. For one model: status 3 while it answers no predictions."""
    with connect(url) as client:
        found = client.models() if model_id is None else client.status(model_id)
    if as_json:
        print_json(found)
    elif model_id is None:
        console.print(models_table(found["items"]) if found["items"] else "No model is registered yet.")
        remark(found)
    else:
        console.print(status_view(found))
    return 0 if model_id is None or found["status"] in _ANSWERING else 3


def status_view(found: Json) -> Group:
    """What the status says, as a page for the terminal."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_row("model", f"[bold]{escape(found['model_id'])}[/]")
    facts.add_row("status", coloured(found["status"]))
    facts.add_row("traffic", escape(shares(found["routes"])))
    if change := found.get("change"):
        facts.add_row("change", escape(f"{change['kind']} to {change['target']}: {change['state']} ({change['id']})"))
    if good := found.get("last_known_good"):
        facts.add_row("last good", escape(str(good.get("version", good))))
    for version, said in _compilations(found["replicas"]).items():
        facts.add_row("compiled", escape(f"{version}: {said}"))
    config = ", ".join(f"{name} {value}" for name, value in found["config"].items() if name not in _ELSEWHERE)
    facts.add_row("config", f"[dim]{escape(config)}[/]")
    return Group(facts, _replicas(found["replicas"]) if found["replicas"] else "\n  No replica is alive.")


def coloured(state: str) -> str:
    """A state in the colour that it deserves, as markup."""
    colour = _COLOURS.get(state, "default")
    return f"[{colour}]{escape(state)}[/]"


def _replicas(replicas: list[Json]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("replica", "workers", "versions", "routes", "last heard of"):
        table.add_column(column, overflow="fold")
    for each in replicas:
        held = [f"{escape(version)} {coloured(_state(said))}" for version, said in each["versions"].items()]
        table.add_row(
            escape(each["replica"]),
            str(len(each["workers"])),
            ", ".join(held) or "none",
            f"revision {each['route_revision']}",
            _ago(each["heartbeat"]),
        )
    return table


def _compilations(replicas: list[Json]) -> dict[str, str]:
    """version -> whether it answers by its compiled form, as the first replica found that tells."""
    told: dict[str, str] = {}
    for each in replicas:
        for version, said in each["versions"].items():
            found = said.get("compilation") if isinstance(said, dict) else None
            if found and version not in told:
                told[version] = _compilation(found)
    return told


def _compilation(found: Json) -> str:
    if not found["used"]:
        return f"no: {found['reason']}"
    gains = (found[f"native_us_{rows}"] / max(found[f"compiled_us_{rows}"], 0.1) for rows in (1, 64))
    faster = " and ".join(f"{gain:.1f} x" for gain in gains)
    difference = f"largest difference {found['max_difference']:.0e}" if found["max_difference"] else "no difference"
    return f"{faster} as fast for 1 and 64 rows; {found['rows']} rows compared, {difference}"


def _state(said: Any) -> str:
    if not isinstance(said, dict):
        return str(said)
    reason = f" ({said['reason']})" if said.get("reason") else ""
    return f"{said.get('state', '')}{reason}"


def _ago(moment: str | None) -> str:
    if not moment:
        return "never"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"{max(0.0, seconds):.0f} s ago" if seconds < 120 else f"{moment[:19].replace('T', ' ')} UTC"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=STATUSES)(status)
