"""Command line of the example: `python -m examples.flights train --months 1-3`, then `replay --month 4`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.flights.data import CACHE_FOLDER, MODEL, DataMissing, Kind, Labels, MonthsInvalid, parse_months
from examples.flights.replay import NothingAnswers, name_run, read_questions, report
from examples.flights.replay import replay as send

if TYPE_CHECKING:
    from examples.flights.register import RegisteredFlights

# 2 is typer's own, for arguments that are wrong.
EXIT_FAILED = 1
EXIT_REGISTRY = EXIT_SERVER = 3
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
    chosen = _months(months, "--months")
    # Here, not above: a replay needs none of it, and scikit-learn takes seconds to import.
    from examples.flights.register import RegistryError, ensure_version, set_alias

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


@app.command()
def replay(
    month: Annotated[str, typer.Option(help="Month of 2013 to replay, such as 4, or a range, such as 4-6.")] = "4",
    limit: Annotated[
        int | None, typer.Option(min=1, help="How many flights, spread over the month; default: all of them.")
    ] = None,
    url: Annotated[str, typer.Option(help="Where predictions are answered.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Name of the model that serves.")] = MODEL,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Connections to send over.")] = 8,
    run: Annotated[
        str | None,
        typer.Option(help="Name of this replay; the same name makes the same requests again. Default: the time."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,  # noqa: FBT002
    cache_folder: Annotated[Path, typer.Option(help="Where tables are kept.")] = CACHE_FOLDER,
) -> None:
    """Send real flights to a served model, one request each in order of departure, and measure what comes back.

    Exits with 1 if a request failed, 2 if an argument is wrong, 3 if nothing answers, 4 if the data is missing.
    """
    chosen, named = _months(month, "--month"), run or name_run()
    try:
        questions = read_questions(chosen, limit, named, cache_folder)
        with _bar() as bar:
            task = bar.add_task(f"replaying flights of month {month}", total=len(questions))
            traffic = send(
                url, questions, model=model, connections=connections, progress=lambda more: bar.advance(task, more)
            )
    except DataMissing as error:
        _fail(str(error), EXIT_DATA)
    except NothingAnswers as error:
        _fail(str(error), EXIT_SERVER)
    else:
        found = {"run": named, **report(questions, traffic)}
        if as_json:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
        else:
            _show(found)
        sys.exit(EXIT_FAILED if found["failed"] else 0)


def _bar() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


def _show(found: dict[str, Any]) -> None:
    quality, latency = found["quality"], found["latency_ms"]
    table = Table("replay", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("requests", f"{found['requests']:,}, {found['failed']:,} failed, {found['retried']:,} asked again")
    table.add_row("latency", ", ".join(f"{name} {_figure(value, 1)} ms" for name, value in latency.items()))
    table.add_row("throughput", f"{found['requests_per_second']:,.0f} requests/s in {found['seconds']:.1f} s")
    for name in ("accuracy", "roc_auc", "brier", "predicted_late", "late"):
        table.add_row(name, _figure(quality[name], 3))
    table.add_row("of flights", f"{quality['flights']:,} that arrived")
    table.add_row("run", found["run"])
    console = Console()
    console.print(table)
    for problem, count in found["problems"].items():
        console.print(f"{count} x {problem}", style="red", markup=False)


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _months(text: str, option: str) -> range:
    try:
        return parse_months(text)
    except MonthsInvalid as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _report(console: Console, registered: "RegisteredFlights", alias: str | None) -> None:
    from examples.flights.training import HOLDOUT

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
