"""Command line of the example: `python -m examples.flights train --months 1-3`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from examples.flights.data import CACHE_FOLDER, DataMissing, MonthsInvalid, parse_months
from examples.flights.register import RegisteredFlights, RegistryError, ensure_version, set_alias
from examples.flights.training import HOLDOUT, Kind, Labels

# 2 is typer's own, for arguments that are wrong.
EXIT_REGISTRY = 3
EXIT_DATA = 4

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def flights() -> None:
    """Will a flight out of New York be late? Trains pipelines and registers them for Switchyard to serve."""


@app.command()
def train(
    months: Annotated[str, typer.Option(help="Months of 2013 to train on: one, such as 7, or a range, such as 1-3.")],
    kind: Annotated[Kind, typer.Option(help="Gradient-boosted trees or logistic regression.")] = "boosting",
    labels: Annotated[Labels, typer.Option(help="'inverted' makes a model that is wrong on purpose.")] = "true",
    alias: Annotated[str | None, typer.Option(help="Let this alias name the version, such as champion.")] = None,
    tracking_uri: Annotated[
        str, typer.Option(envvar="SWITCHYARD_MLFLOW_TRACKING_URI", help="Address of the MLflow server.")
    ] = "http://127.0.0.1:5000",
    rows: Annotated[int | None, typer.Option(min=1_000, help="Train on a sample of this size only.")] = None,
    cache_folder: Annotated[Path, typer.Option(help="Where tables and fitted pipelines are kept.")] = CACHE_FOLDER,
) -> None:
    """Train on these months and register a version, unless the same one is there already.

    Exits with 2 if an argument is wrong, 3 if the registry cannot be reached or refuses, 4 if the data is missing.
    """
    try:
        chosen = parse_months(months)
    except MonthsInvalid as error:
        raise typer.BadParameter(str(error), param_hint="--months") from error
    console = Console()
    try:
        with console.status("working"):
            registered = ensure_version(
                tracking_uri,
                chosen,
                kind,
                labels,
                rows=rows,
                cache_folder=cache_folder,
                progress=lambda step: console.print(step, style="dim", markup=False),
            )
            if alias:
                set_alias(tracking_uri, registered.version, alias)
    except RegistryError as error:
        _fail(str(error), EXIT_REGISTRY)
    except DataMissing as error:
        _fail(str(error), EXIT_DATA)
    else:
        _report(console, registered, alias)


def _report(console: Console, registered: RegisteredFlights, alias: str | None) -> None:
    table = Table(f"last {HOLDOUT.days} days, held out")
    table.add_column("value", justify="right")
    for name, value in registered.metrics.items():
        table.add_row(name, f"{value:,.0f}" if value.is_integer() else f"{value:.3f}")
    console.print(table)
    was = "was registered before" if registered.reused else "registered"
    called = f", now {alias}" if alias else ""
    console.print(f"{registered.name} version {registered.version} {was}{called} ({registered.seconds:.1f} s)")


def _fail(message: str, code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    app()
