"""What the terminal shows of predictions: one answer, or what came of many rows."""

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from control_plane.commands.bulk import Predicted, Summary
from control_plane.commands.predictions import as_json as row_as_json
from control_plane.commands.terminal import beside, console, print_json

Json = dict[str, Any]

SHOWN_ROWS = 20
_SHOWN_PROBLEMS = 10


def answer_table(answer: Json) -> Table:
    """One record's answer, fact by fact."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in answer["predictions"][0].items():
        shown = ", ".join(f"{key} {each:.4f}" for key, each in value.items()) if isinstance(value, dict) else value
        table.add_row(name, f"[bold]{escape(str(shown))}[/]")
    if answer.get("confidence_scores"):
        table.add_row("confidence", f"{answer['confidence_scores'][0]:.4f}")
    table.add_row("version", escape(str(answer["model_version"])))
    if answer.get("processing_time") is not None:
        table.add_row("took", f"{answer['processing_time'] * 1000:.1f} ms")
    table.add_row("request", f"[dim]{escape(str(answer['request_id']))}[/]")
    return table


def report(summary: Summary, kept: list[Predicted], output: str | None, *, as_json: bool) -> None:
    """All of it: rows, what was wrong with some, and how fast it went."""
    if as_json:
        problems = [row_as_json(each) for each in summary.problems]
        shown: Json = {"summary": summary.as_json(), "errors": problems}
        print_json(shown | ({"output": output} if output else {"predictions": [row_as_json(each) for each in kept]}))
        return
    if not output:
        console.print(_rows_table(kept[:SHOWN_ROWS]))
        if summary.rows > SHOWN_ROWS:
            console.print(f"  and {summary.rows - SHOWN_ROWS:,} more; --output writes all of them to a file")
    for each in summary.problems[:_SHOWN_PROBLEMS]:
        beside.print(f"[red]line {each.line}[/]: {escape(str(each.problem))}", soft_wrap=True, highlight=False)
    if summary.failed > _SHOWN_PROBLEMS:
        beside.print(f"[red]and {summary.failed - _SHOWN_PROBLEMS:,} more rows[/]")
    console.print(_summary_table(summary, output))


def _rows_table(rows: list[Predicted]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("line", "prediction", "confidence", "version"):
        table.add_column(column, overflow="fold")
    for each in rows:
        said = each.prediction or {}
        shown = str(said.get("label", said.get("value", "")))
        confidence = "" if each.confidence is None else f"{each.confidence:.3f}"
        table.add_row(
            str(each.line), "[red]failed[/]" if each.problem else escape(shown), confidence, escape(each.version or "")
        )
    return table


def _summary_table(summary: Summary, output: str | None) -> Table:
    facts = summary.as_json()
    latency = {name: "-" if value is None else f"{value * 1000:.1f} ms" for name, value in facts["latency"].items()}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    failed = f", [red]{summary.failed:,} failed[/]" if summary.failed else ""
    table.add_row("rows", f"{summary.rows:,}{failed}")
    table.add_row("seconds", f"{summary.seconds:.2f}  ({facts['rows_per_second'] or 0:,.0f} rows/s)")
    table.add_row("requests", f"{facts['requests']:,}  (p50 {latency['p50']}, p95 {latency['p95']})")
    if summary.retried:
        table.add_row("asked again", f"{summary.retried:,} times, as the server was busy")
    if output:
        table.add_row("written to", escape(output))
    return table
