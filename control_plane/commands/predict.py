"""`switchyard predict`: ask a model, one record from the arguments or many rows from a file."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from control_plane.commands.columns import Column, columns_of, find_missing, find_unknown, params_of, value_of
from control_plane.commands.terminal import STATUSES, AsJson, ModelId, Url, beside, connect, console, print_json
from control_plane.errors import InputUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from control_plane.client import Client
    from control_plane.commands.bulk import Predicted

Json = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What every request of one command has in common."""

    model_id: str
    version: str | None  # asked for by name, or None: whatever is routed
    columns: list[Column] | None
    common: Json


def predict(
    model_id: ModelId,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="COLUMN=VALUE", help="One column of one record; give it for each."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="Rows to predict: CSV, JSON, JSON lines or Parquet; - is standard input."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Write a line for each row here: .jsonl or .csv.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability from which a binary classifier says yes.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A param of the model's signature.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Who asks: the unit that A/B tests and staged changes go by.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Ask this loaded version, whatever is routed (no part of usage and quality).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of the file in one request.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")] = 4,
    ignore_unknown: Annotated[  # noqa: FBT002
        bool, typer.Option("--ignore-unknown", help="Leave out columns that the model does not take.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> int:
    """Ask a model for predictions: of one record (--data), or of every row of a file (--file).

    Text becomes the types of the version's signature; an empty cell is a missing value. A row that cannot be predicted
    is named with its line, the others go on; the status is 1 then. A busy server is asked again.
    """
    if bool(data) == bool(file):
        raise typer.BadParameter("give a record (--data column=value, once for each column), or a file (--file)")
    if output and not file:
        raise typer.BadParameter("--output is for the rows of a --file")
    with connect(url, concurrency) as client:
        question = _question(client, model_id, version, threshold, param or [], user)
        ask = _asker(client, question)
        if data:
            return _one(ask, question, data, ignore_unknown=ignore_unknown, as_json=as_json)
        from control_plane.commands.rows import Wanted

        wanted = Wanted(question.columns, ignore_unknown)
        return _many(ask, question, str(file), wanted, output, batch_size, concurrency, as_json=as_json)


def _question(
    client: "Client", model_id: str, version: str | None, threshold: float | None, params: list[str], user: str | None
) -> Question:
    asked = version or client.status(model_id)["version"]
    signature = client.signature(model_id, asked) if asked else None
    common: Json = {}
    parameters: Json = {} if threshold is None else {"threshold": threshold}
    kinds = {each.name: each.type for each in params_of(signature)}
    parameters |= dict(_pair("--param", each, kinds) for each in params)
    if parameters:
        common["parameters"] = parameters
    if user is not None:
        common["user_id"] = user
    return Question(model_id, version, columns_of(signature), common)


def _asker(client: "Client", question: Question) -> "Callable[[Json], Json]":
    """How one question is put: to what is routed, or to one version by name."""
    from control_plane.commands.open_inference import as_infer, from_infer

    version = question.version
    if version is None:
        return lambda body: client.predict(question.model_id, body)
    return lambda body: from_infer(
        client.infer(question.model_id, version, as_infer(body, question.columns)), body.get("request_id")
    )


def _one(
    ask: "Callable[[Json], Json]", question: Question, data: list[str], *, ignore_unknown: bool, as_json: bool
) -> int:
    kinds = {each.name: each.type for each in question.columns or []}
    record = dict(_pair("--data", each, kinds) for each in data)
    unknown = find_unknown(record, question.columns)
    if unknown and not ignore_unknown:
        raise InputUnusable("--data", f"the model has no column {', '.join(unknown)}. Its columns: {', '.join(kinds)}")
    if missing := find_missing(record, question.columns):
        raise InputUnusable("--data", f"the model requires {', '.join(missing)} as well")
    answer = ask(
        {"input_data": {name: each for name, each in record.items() if name not in unknown}, **question.common}
    )
    if as_json:
        print_json(answer)
    else:
        from control_plane.commands.report import answer_table

        console.print(answer_table(answer))
    return 0


def _pair(option: str, text: str, kinds: dict[str, str]) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InputUnusable(option, f"'{text}' is not name=value")
    try:
        return name, value_of(value, kinds.get(name, "any"))
    except ValueError as error:
        raise InputUnusable(option, f"{name}: {error}") from error


def _many(
    ask: "Callable[[Json], Json]",
    question: Question,
    file: str,
    wanted: Any,
    output: str | None,
    batch_size: int,
    concurrency: int,
    *,
    as_json: bool,
) -> int:
    from control_plane.commands.bulk import Sender, Summary, map_in_order
    from control_plane.commands.predictions import PredictionFile
    from control_plane.commands.report import SHOWN_ROWS, report
    from control_plane.commands.rows import batches, open_rows

    sender, summary = Sender(ask, question.common), Summary()
    written = PredictionFile(output) if output else None
    kept: list[Predicted] = []
    with open_rows(file, wanted) as opened, _progress() as bar:
        task = bar.add_task("predicting", total=opened.size, rows=0)
        begun = time.monotonic()
        try:
            for answered in map_in_order(sender.send, batches(opened.rows, batch_size), concurrency):
                summary.add(answered)
                if written:
                    written.add(answered.rows)
                elif as_json or len(kept) < SHOWN_ROWS:
                    kept += answered.rows
                bar.update(task, completed=opened.position, rows=summary.rows)
        finally:
            summary.seconds = time.monotonic() - begun
            if written:
                written.close()
    report(summary, kept, output, as_json=as_json)
    return 1 if summary.failed else 0


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=beside,
        transient=True,
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=STATUSES)(predict)
