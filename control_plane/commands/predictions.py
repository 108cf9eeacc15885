"""Where predictions go: a JSON-lines or CSV file, one line for each row that was read, in the rows' order."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from control_plane.client import Json
from control_plane.commands.bulk import Predicted
from control_plane.errors import InputUnusable

_FIRST, _LAST = ["line"], ["confidence", "model_version", "request_id", "row", "error"]


def as_json(row: Predicted) -> Json:
    """One row's prediction, or what was wrong with it."""
    if row.problem:
        return {"line": row.line, "error": row.problem}
    shown = {"line": row.line, **(row.prediction or {})}
    if row.confidence is not None:
        shown["confidence"] = row.confidence
    return {**shown, "model_version": row.version, "request_id": row.request_id, "row": row.row}


class PredictionFile:
    """Written as answers come; nothing of an older file is lost before the first of them is there."""

    def __init__(self, name: str) -> None:
        """`name` ends in .jsonl or .csv.

        Raises:
            InputUnusable: it does not, or its folder does not exist.
        """
        self.path = Path(name)
        self._is_csv = self.path.suffix == ".csv"
        self._file: IO[str] | None = None
        self._writer: csv.DictWriter[str] | None = None
        self._waiting: list[Json] = []  # for a row that shows which columns there are
        if self.path.suffix not in (".csv", ".jsonl"):
            raise InputUnusable(name, "is no name to write to; it ends in .jsonl or .csv")
        if not self.path.parent.is_dir():
            raise InputUnusable(name, f"the folder {self.path.parent} does not exist")

    def add(self, rows: Iterable[Predicted]) -> None:
        """Write some more.

        Raises:
            InputUnusable: the file cannot be written.
        """
        try:
            if self._file is None:
                self._file = self.path.open("w", encoding="utf-8", newline="")
            self._write(self._file, [as_json(each) for each in rows])
            self._file.flush()
        except OSError as error:
            raise InputUnusable(str(self.path), f"cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """The end."""
        if self._file is None:
            return
        if self._waiting:
            self._begin_table(self._file, {}).writerows(self._waiting)
        self._file.close()

    def _write(self, file: IO[str], rows: list[Json]) -> None:
        if not self._is_csv:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            return
        rows = [{**row, **_spread(row)} for row in rows]
        good = next((row for row in rows if "error" not in row), None)
        if self._writer is None and good is None:
            self._waiting += rows
            return
        if self._writer is None:
            self._writer = self._begin_table(file, good or {})
            self._writer.writerows(self._waiting)
            self._waiting = []
        self._writer.writerows(rows)

    def _begin_table(self, file: IO[str], row: Json) -> "csv.DictWriter[str]":
        own = [name for name in row if name not in (*_FIRST, *_LAST, "probabilities")]
        writer = csv.DictWriter(file, [*_FIRST, *own, *_LAST], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        return writer


def _spread(row: Json) -> Json:
    """A column for each class."""
    return {f"probability_{name}": value for name, value in (row.get("probabilities") or {}).items()}
