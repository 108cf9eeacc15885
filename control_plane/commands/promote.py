"""`switchyard promote`: let another version serve, and watch it happen."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from control_plane.commands.status import coloured
from control_plane.commands.terminal import STATUSES, AsJson, ModelId, Url, beside, connect, console, print_json

if TYPE_CHECKING:
    from control_plane.client import Client

Json = dict[str, Any]

SUCCEEDED, PLANNED = "succeeded", "planned"


def promote(
    model_id: ModelId,
    target: Annotated[str, typer.Argument(help="The version that shall serve: a number, or an alias.")],
    reason: Annotated[str, typer.Option(help="Why; goes on record.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and plan; change nothing.")] = False,  # noqa: FBT002
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Begin it and return at once.")] = False,  # noqa: FBT002
    skip_gates: Annotated[bool, typer.Option("--skip-gates", help="Do not judge the version's quality.")] = False,  # noqa: FBT002
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> int:
    """Let a version serve: it is loaded and warmed on every replica first, then gets the traffic. Nothing is dropped.

    Ctrl-C ends the watching, not the change.
    """
    wanted: Json = {"target": target, "reason": reason}
    wanted |= {name: True for name, given in (("dry_run", dry_run), ("skip_gates", skip_gates)) if given}
    with connect(url) as client:
        change = client.promote(model_id, wanted)
        if not no_wait and not dry_run:
            change = watch(client, change, beside)
    if as_json:
        print_json(change)
    else:
        show(change)
    return 0 if no_wait or change["state"] in (SUCCEEDED, PLANNED) else 1


def watch(client: "Client", change: Json, where: Console) -> Json:
    """Show the states as they pass until the change is over; the change as it ended."""
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=where, transient=True
    )
    said: list[str] = []
    try:
        with bar:
            task = bar.add_task(_headline(change), total=None)
            for change in client.follow(change):  # noqa: B020 (the same change, later)
                if change["state"] not in said:
                    said.append(change["state"])
                    bar.console.print(f"  {coloured(change['state'])}", highlight=False)
                bar.update(task, description=f"{_headline(change)}: {escape(_current(change))}")
    except KeyboardInterrupt:
        where.print(
            f"Stopped watching. The change goes on: {escape(change['id'])}, see 'switchyard status {escape(change['model_id'])}'.",
            soft_wrap=True,
        )
        raise
    return change


def show(change: Json) -> None:
    """What came of it; the steps with their evidence where it did not succeed; of a dry run, what would be done."""
    console.print(f"{_headline(change)}: {coloured(change['state'])}  [dim]{escape(change['id'])}[/]", soft_wrap=True)
    if change.get("detail"):
        console.print(f"  {escape(change['detail'])}", soft_wrap=True)
    if change["state"] == SUCCEEDED:
        taken = [f"{name} {seconds:.2f} s" for name, seconds in change["durations"].items() if seconds is not None]
        console.print(f"  [dim]{escape(', '.join(taken))}[/]")
    elif change["state"] == PLANNED:
        for each in change["plan"]:
            console.print(f"  {escape(each['step'])}: {escape(each['what'])}", soft_wrap=True)
    elif change["steps"]:
        console.print(_steps(change["steps"]))


def _steps(steps: list[Json]) -> Table:
    table = Table("step", "state", "evidence", box=None, padding=(0, 2, 0, 2))
    for each in steps:
        table.add_row(escape(each["name"]), coloured(each["state"]), escape(_words(each.get("evidence"))))
    return table


def _headline(change: Json) -> str:
    before = f"{change['source']} -> " if change.get("source") else ""
    return f"[bold]{escape(change['kind'])}[/] {escape(change['model_id'])} {escape(before)}{escape(str(change['target']))}"


def _current(change: Json) -> str:
    """The step under way, or the state."""
    open_steps = [each["name"] for each in change["steps"] if each.get("started_at") and not each.get("ended_at")]
    return str(open_steps[-1] if open_steps else change["state"])


def _words(evidence: Any) -> str:
    """Evidence as one would say it: its texts and numbers by name, deeper ones as JSON."""
    if evidence is None:
        return ""
    if not isinstance(evidence, dict):
        return str(evidence)
    shown = [
        f"{name}: {json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, (dict, list)) else value}"
        for name, value in evidence.items()
        if value not in (None, "", [], {})
    ]
    return "\n".join(shown)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=STATUSES)(promote)
