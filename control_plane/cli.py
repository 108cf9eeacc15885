"""The command `switchyard`. It starts processes and asks them; it does not import them."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from control_plane import commands
from control_plane.errors import ApiNotReady, ApiRefused, ApiUnreachable, InputUnusable, SettingsInvalid
from control_plane.settings import Settings, explain_settings, load_settings
from serving.errors import SwitchyardError

# Each command imports what it needs itself: `switchyard settings` must not wait for MLflow to load.

app = typer.Typer(
    name="switchyard",
    help="Serve models from an MLflow registry, watch them, compare them, and roll back to what was good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
database_app = typer.Typer(help="Create, upgrade or downgrade the database.", no_args_is_help=True)
app.add_typer(database_app, name="database")

console = Console()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}


def main() -> None:
    """Run the command; an error of ours is one clear text and a status, never a traceback.

    Status: 0 it worked, 1 it did not, 2 settings, arguments or input are wrong, 3 nothing answers or it is not ready.
    """
    _reach_ourselves_directly()
    try:
        status = app(standalone_mode=False)
    except SwitchyardError as error:
        name = error.error if isinstance(error, ApiRefused) else type(error).__name__
        Console(stderr=True).print(f"[red]{escape(name)}[/]:", escape(error.detail), soft_wrap=True)
        sys.exit(_status_of(error))
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        show: Callable[..., None] | None = getattr(error, "show", None)  # wrong arguments, as typer reports them
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(status if isinstance(status, int) else 0)


def _status_of(error: SwitchyardError) -> int:
    if isinstance(error, (SettingsInvalid, InputUnusable)):
        return 2
    return 3 if isinstance(error, (ApiUnreachable, ApiNotReady)) else 1


def _reach_ourselves_directly() -> None:
    """For us and all we start: a proxy cannot reach this machine's own servers, and every HTTP client obeys HTTP_PROXY."""
    given = [os.environ.get("no_proxy", ""), os.environ.get("NO_PROXY", ""), "localhost,127.0.0.1,::1"]
    names = dict.fromkeys(filter(None, ",".join(given).split(",")))  # each once, also when this is called again
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)


@app.command()
def up() -> int:
    """Start everything, print the addresses, and keep it running until Ctrl-C."""
    from control_plane.supervision.run import run_stack

    settings = load_settings()
    return run_stack(settings, _prepare(settings), console)


@app.command()
def demo(
    exit_after: Annotated[bool, typer.Option("--exit", help="End everything when the demo is over.")] = False,  # noqa: FBT002
) -> int:
    """Start everything in a folder of its own and fill it with models trained on real flights."""
    from control_plane.demo import fill, require_checkout
    from control_plane.supervision.run import run_stack

    require_checkout()
    settings = _demo_settings(load_settings())
    return run_stack(settings, _prepare(settings), console, lambda: fill(settings, console), exit_after=exit_after)


@app.command()
def logs(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="data-plane, control-plane, prefect, flows, mlflow, supervisor; default: all."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")] = False,  # noqa: FBT002
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines to begin with.")] = 50,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Show the logs of all parts, or of some, in one stream."""
    from control_plane.supervision.logs import follow_logs, print_logs, read_logs

    home = load_settings().home
    read = follow_logs if follow else read_logs
    try:
        print_logs(read(home, parts or [], lines), console, as_json=as_json)
    except KeyboardInterrupt:
        return


@app.command()
def doctor(as_json: AsJson = False) -> int:  # noqa: FBT002
    """Look at versions, folders, database, ports and servers, and say what to do. Status 1 when something is wrong."""
    from control_plane.doctor import examine

    findings = list(examine(load_settings()))
    if as_json:
        _print_json([dataclasses.asdict(each) for each in findings])
    else:
        table = Table("", "what", "found", box=None, padding=(0, 2, 0, 0))
        for each in findings:
            table.add_row(
                _MARKS[each.status],
                each.subject,
                escape(each.found) + (f"\n[dim]{escape(each.advice)}[/]" if each.advice else ""),
            )
        console.print(table)
    return int(any(each.status == "wrong" for each in findings))


@app.command()
def settings(as_json: AsJson = False) -> None:  # noqa: FBT002
    """List every setting with its value, where that comes from, and what it is for."""
    rows = explain_settings(load_settings())
    if as_json:
        _print_json([dataclasses.asdict(each) for each in rows])
        return
    table = Table("setting", "value", "from", "for", show_lines=False, box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True  # a name that is cut cannot be copied
    for row in rows:
        origin = row.origin if row.origin == "default" else f"[bold]{escape(row.origin)}[/]"
        table.add_row(row.variable, escape(row.value) or "-", origin, f"[dim]{escape(row.description)}[/]")
    console.print(table)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(f"switchyard {installed_version('switchyard')}")


commands.register(app)


@database_app.command("upgrade")
def database_upgrade(
    create: Annotated[bool, typer.Option("--create", help="Create it where it does not exist or is empty.")] = False,  # noqa: FBT002
) -> None:
    """Bring the database to this version's schema."""
    from control_plane.storage.setup import create_database, upgrade_database

    loaded = load_settings()
    work = create_database if create else upgrade_database
    work(loaded.resolved_database_url, loaded.database_timeout)
    _print_database(loaded)


@database_app.command("downgrade")
def database_downgrade(
    revision: Annotated[str, typer.Argument(help="An older schema, or 'base' for none. Data of newer tables is lost.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002
) -> None:
    """Take the database back to an older schema."""
    from control_plane.storage.setup import downgrade_database

    loaded = load_settings()
    if not yes:
        typer.confirm("Data that the older schema has no place for is lost. Is there a backup?", abort=True)
    downgrade_database(loaded.resolved_database_url, loaded.database_timeout, revision)
    console.print(f"The database is at schema {revision} now.")


@database_app.command("status")
def database_status() -> None:
    """Say which schema the database has; status 1 when it cannot be used."""
    _print_database(load_settings())


def _print_database(loaded: Settings) -> None:
    from serving.store import open_database

    with closing(open_database(loaded.resolved_database_url, loaded.database_timeout)) as database:
        database.check()
        console.print(f"{database.name}: schema {database.schema}, up to date.", soft_wrap=True, markup=False)


def _prepare(loaded: Settings) -> Callable[[], None]:
    from control_plane.storage.setup import prepare_database

    embedded_in: Path | None = loaded.home if loaded.database_url is None else None
    return lambda: prepare_database(loaded.resolved_database_url, loaded.database_timeout, embedded_in=embedded_in)


def _demo_settings(loaded: Settings) -> Settings:
    """The user's own data and servers are not the demo's to fill."""
    own: dict[str, Any] = {"data_folder": loaded.home / "demo"}
    own |= dict.fromkeys(("database_url", "artifact_folder", "mlflow_tracking_uri", "prefect_api_url"))
    # A new object, not a copy: a copy would keep the folders that were resolved for the user's.
    return Settings(**{name: getattr(loaded, name) for name in Settings.model_fields} | own)


def _print_json(value: Any) -> None:
    console.print_json(json.dumps(value, default=str))
