"""Rows to predict from, out of a CSV, JSON, JSON-lines or Parquet file; told apart by what is in it, not by its name."""

import csv
import io
import math
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from control_plane.commands.columns import Column, carried, find_missing, find_unknown, value_of
from control_plane.errors import InputUnusable


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file. Its values are JSON values by column, or a problem says why there are none."""

    line: int  # of a CSV or JSON-lines file, else the row's number; the first is 1
    values: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What the model takes, and what to do with columns that it does not."""

    columns: list[Column] | None
    ignore_unknown: bool = False

    def check(self, source: str, given: list[str]) -> list[str]:
        """The names to send, of those that the file has.

        Raises:
            InputUnusable: one is unknown, twice there, or a required one is missing.
        """
        twice = {name for name in given if given.count(name) > 1}
        if twice:
            raise InputUnusable(source, f"more than one column is called {_listed(sorted(twice))}")
        unknown = find_unknown(given, self.columns)
        names = [name for name in given if name not in unknown]
        if unknown and not self.ignore_unknown:
            known = _listed([each.name for each in self.columns or []])
            raise InputUnusable(
                source,
                f"the model has no column {_listed(unknown)}. Its columns: {known}. "
                "Leave out what it does not take with --ignore-unknown",
            )
        if missing := find_missing(names, self.columns):
            raise InputUnusable(source, f"column {_listed(missing)} is missing, which the model requires")
        return names


@dataclass
class RowFile:
    """An opened file: its rows, once, and how far they have been read."""

    source: str
    rows: Generator[Row, None, None]
    size: int | None  # bytes; None where nobody knows
    raw: BinaryIO

    def close(self) -> None:
        """Read no further; the file itself is closed by who opened it."""
        self.rows.close()

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self.raw.tell() if self.size is not None else 0


@contextmanager
def open_rows(name: str, wanted: Wanted) -> Iterator[RowFile]:
    """The rows of a file or a pipe; `-` is standard input.

    Raises:
        InputUnusable: there is no such file, it holds no rows, is none of the formats, or has the wrong columns.
            Raised while rows are read too, where only then it shows.
    """
    source = "standard input" if name == "-" else name
    with ExitStack() as stack:
        if name == "-":
            file: BinaryIO = sys.stdin.buffer
        else:
            with _blaming(source):
                file = stack.enter_context(Path(name).open("rb"))
        yield stack.enter_context(closing(_opened(source, file, wanted)))


def batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """The rows, `size` at a time."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """What goes wrong in here is the file's fault; an OSError of anything else, as of a closed terminal, is not."""
    try:
        yield
    except OSError as error:
        raise InputUnusable(source, f"cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputUnusable(source, f"is no UTF-8 text (byte {error.object[error.start]:#x})") from error


def _opened(source: str, given: BinaryIO, wanted: Wanted) -> RowFile:
    with _blaming(source):
        is_file = given.seekable()  # a pipe gives its bytes once, and its format only shows in them
        file = given if is_file else io.BytesIO(given.read())
        size = os.fstat(given.fileno()).st_size if is_file else None
        rows = _read(source, file, wanted)
        first = next(rows, None)  # what is wrong with the columns shows now, before anything is sent
    if first is None:
        raise InputUnusable(source, "has no rows")
    return RowFile(source, _again(source, first, rows), size, file)


def _read(source: str, file: BinaryIO, wanted: Wanted) -> Iterator[Row]:
    begin = file.read(4096)
    file.seek(0)
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise InputUnusable(source, "is empty")
    if begin.startswith(b"PAR1"):
        return _parquet(source, file, wanted)
    if text[:1] in (b"[", b"{"):
        return _json(source, file, wanted)
    return _csv(source, file, wanted)


def _again(source: str, first: Row, rest: Iterator[Row]) -> Generator[Row, None, None]:
    yield first
    with _blaming(source):
        yield from rest


def _csv(source: str, file: BinaryIO, wanted: Wanted) -> Iterator[Row]:
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        reader = csv.reader(text, strict=True)
        header = [each.strip() for each in next(reader)]
        names = wanted.check(source, header)
        kinds = {each.name: each.type for each in wanted.columns or []}
        places = [(at, name, kinds.get(name, "any")) for at, name in enumerate(header) if name in names]
        for cells in reader:
            if cells:
                yield _csv_row(reader.line_num, cells, len(header), places)
    except csv.Error as error:
        raise InputUnusable(source, f"line {reader.line_num}: {error}") from error
    finally:
        text.detach()  # the file is closed by who opened it


def _csv_row(line: int, cells: list[str], width: int, places: list[tuple[int, str, str]]) -> Row:
    if len(cells) != width:
        return Row(line, {}, f"has {len(cells)} cells, the header has {width}")
    values = {}
    for at, name, kind in places:
        try:
            values[name] = value_of(cells[at], kind)
        except ValueError as error:
            return Row(line, {}, f"{name}: {error}")
    return Row(line, values)


def _json(source: str, file: BinaryIO, wanted: Wanted) -> Iterator[Row]:
    if _is_lines(file):
        yield from _json_lines(source, file, wanted)
        return
    try:
        whole = orjson.loads(file.read().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise InputUnusable(source, f"line {error.lineno}: is no JSON ({error.msg})") from error
    for number, record in enumerate(_records(source, whole), 1):
        yield _checked(source, number, record, wanted, "row")


def _is_lines(file: BinaryIO) -> bool:
    """Whether the first line is an object of its own, with another line below it."""
    try:
        is_whole = isinstance(orjson.loads(file.readline().removeprefix(b"\xef\xbb\xbf")), dict)
    except orjson.JSONDecodeError:
        is_whole = False
    more = is_whole and bool(file.readline().strip())
    file.seek(0)
    return more


def _json_lines(source: str, file: BinaryIO, wanted: Wanted) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except orjson.JSONDecodeError as error:
            yield Row(number, {}, f"is no JSON ({error.msg})")
            continue
        yield _checked(source, number, record, wanted, "line")


def _records(source: str, whole: Any) -> list[Any]:
    """A list of records as it is; one record as a list; columns of equal length as records."""
    if isinstance(whole, list):
        return whole
    lengths = {len(each) if isinstance(each, list) else -1 for each in whole.values()}
    if not whole or -1 in lengths:
        return [whole]
    if len(lengths) > 1:
        raise InputUnusable(source, f"its columns are not of equal length: {_listed(sorted(map(str, lengths)))} rows")
    return [dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True)]


def _checked(source: str, number: int, record: Any, wanted: Wanted, unit: str) -> Row:
    """A wrong first record says that the file is not meant for this model; a later one is wrong by itself."""
    if not isinstance(record, dict):
        return Row(number, {}, "is no JSON object")
    try:
        names = wanted.check(f"{source}, {unit} {number}", list(record))
    except InputUnusable as error:
        if number == 1:
            raise
        return Row(number, {}, error.problem)
    return Row(number, {name: record[name] for name in names})


def _parquet(source: str, file: BinaryIO, wanted: Wanted) -> Iterator[Row]:
    import pyarrow as pa  # type: ignore[import-untyped]  # it has none
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        names = wanted.check(source, [each for each in table.schema_arrow.names if not each.startswith("__index_")])
        number = 0
        for part in table.iter_batches(batch_size=1000, columns=names):
            for record in part.to_pylist():
                number += 1
                yield _parquet_row(number, record, is_typed=wanted.columns is not None)
    except pa.ArrowException as error:
        raise InputUnusable(source, f"is no readable Parquet file ({error})") from error


def _parquet_row(number: int, record: dict[str, Any], *, is_typed: bool) -> Row:
    values = {name: carried(value) for name, value in record.items()}
    for name, value in record.items():
        # Only a column that is known to hold numbers takes the text for one.
        if not is_typed and isinstance(value, float) and math.isinf(value):
            return Row(number, {}, f"{name}: is infinite, which a model without a signature of columns cannot be sent")
    return Row(number, values)


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{each}'" for each in names) or "none"
