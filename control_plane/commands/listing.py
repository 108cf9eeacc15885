"""`switchyard models` and `switchyard versions`: what there is."""

from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from control_plane.commands.terminal import (
    STATUSES,
    AsJson,
    ModelId,
    Url,
    beside,
    connect,
    console,
    figure,
    print_json,
    size,
    when,
)

Json = dict[str, Any]

# Quality first, as people look for it; of the metrics that a version was logged with.
_METRICS = ("roc_auc", "accuracy", "brier", "log_loss", "f1", "rmse", "mae", "r2")
_SHOWN_METRICS = 2


def models(url: Url = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """List every model: what serves, its state, its aliases."""
    with connect(url) as client:
        found = client.models()
    if as_json:
        print_json(found)
        return
    console.print(models_table(found["items"]) if found["items"] else "No model is registered yet.")
    remark(found)


def versions(model_id: ModelId, url: Url = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """List the versions of a model, newest first: aliases, state, quality, size."""
    with connect(url) as client:
        found = client.versions(model_id)
    if as_json:
        print_json(found)
        return
    console.print(versions_table(model_id, found["items"]))
    remark(found)


def models_table(items: Iterable[Json]) -> Table:
    """One line a model."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "status", "version", "traffic", "aliases"):
        table.add_column(column, overflow="fold")
    for each in items:
        aliases = ", ".join(f"{alias} {version}" for alias, version in each["aliases"].items())
        row = (each["model_id"], each["status"], each["version"] or "-", shares(each["routes"]), aliases)
        table.add_row(*map(escape, row))
    return table


def versions_table(model_id: str, items: list[Json]) -> Table:
    """One line a version, with the metrics that most tell of quality."""
    there = {name for each in items for name in each["metrics"]}
    metrics = [name for name in _METRICS if name in there][:_SHOWN_METRICS]
    table = Table(title=f"Versions of {escape(model_id)}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("version", "alias", "state", *metrics, "size", "registered"):
        table.add_column(column, overflow="fold")
    for each in items:
        share = f" {each['weight']:.0%}" if 0 < each.get("weight", 0.0) < 1 else ""
        row = [each["version"], ", ".join(each["aliases"]), each["state"] + share]
        row += [figure(each["metrics"].get(name)) for name in metrics]
        table.add_row(*map(escape, [*row, size(each["size_bytes"]), when(each["created_at"])]))
    return table


def shares(routes: Iterable[Mapping[str, Any]]) -> str:
    """`3 95%, 4 5%`."""
    return ", ".join(f"{each['version']} {each['weight']:.0%}" for each in routes) or "-"


def remark(found: Json) -> None:
    """Say which sources could not be asked, so that nobody takes a short list for a whole one."""
    for source, problem in found.get("unavailable", {}).items():
        beside.print(f"[yellow]There may be more: the {escape(source)} could not be asked.[/]", escape(problem))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=STATUSES)(models)
    app.command(epilog=STATUSES)(versions)
