"""The fast way through the columns of a signature: checked by type and range many at once, packed in one call."""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import orjson

from serving.contracts import Encoding
from serving.input_schema.careful import ROOT, read_carefully
from serving.input_schema.cells import CellType
from serving.input_schema.column import Column, plain
from serving.input_schema.problems import invalid

Pick = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class _Group:
    """The columns of one type that are all required, or all not: checked together."""

    pick: Pick  # their cells, of a record's cells in the signature's order
    type: CellType
    required: bool

    def accepts(self, record: Sequence[Any]) -> bool:
        return plain(self.type, self.pick(record), required=self.required)


class ColumnsInput:
    """Rows of a signature of columns."""

    def __init__(self, columns: list[Column], encoding: Encoding) -> None:
        self._columns = {each.spec.name: each for each in columns}
        self._encoding = encoding
        self._width = len(columns)
        self._pick = _picker([each.spec.name for each in columns])
        self._left_out = {each.spec.name: None for each in columns if not each.spec.required}
        self._groups = _grouped(columns)
        self._quick = all(each.type.plain for each in columns)
        self._pack = struct.Struct(f"<{self._width}d").pack

    def encode(self, given: Any, max_rows: int) -> tuple[int, bytes]:
        """How many rows, and their bytes.

        Raises:
            ValidationFailed: with everything that is wrong, up to a bound.
        """
        quick = self._encode_quickly(given, max_rows) if self._quick else None
        return quick or self._encode_carefully(given, max_rows)

    def _encode_quickly(self, given: Any, max_rows: int) -> tuple[int, bytes] | None:
        """As most requests come; None where something needs a closer look, which may find it right or wrong."""
        try:
            if len(given) != self._width:
                given = self._left_out | given
            cells = self._pick(given)
            if len(given) != self._width:
                return None
            return self._record(cells) if type(cells[0]) is not list else self._lists(cells, max_rows)
        except (TypeError, KeyError, OverflowError):
            return None  # no object, a column is missing, or an integer is too large for any float

    def _record(self, cells: Sequence[Any]) -> tuple[int, bytes] | None:
        for group in self._groups:
            if not group.accepts(cells):
                return None
        if self._encoding is Encoding.JSON:
            return 1, orjson.dumps((cells,))
        if self._left_out:
            cells = [math.nan if each is None else each for each in cells]
        return 1, self._pack(*cells)

    def _lists(self, lists: Sequence[Any], max_rows: int) -> tuple[int, bytes] | None:
        size = len(lists[0])
        if not 0 < size <= max_rows:
            return None
        for column, cells in zip(self._columns.values(), lists, strict=True):
            if type(cells) is not list or len(cells) != size or not column.accepts(cells):
                return None
        return size, self._packed(lists, size)

    def _encode_carefully(self, given: Any, max_rows: int) -> tuple[int, bytes]:
        size, lists = read_carefully(self._columns, given, max_rows)
        try:
            return size, self._packed(lists, size)
        except (TypeError, OverflowError):  # an integer beyond 64 bits, or half a surrogate pair
            raise invalid(ROOT, "a value that cannot travel", "integers of 64 bits, and whole characters") from None

    def _packed(self, lists: Sequence[Sequence[Any]], size: int) -> bytes:
        rows = zip(*lists, strict=True)
        if self._encoding is Encoding.JSON:
            return orjson.dumps(list(rows))
        flat: Any = chain.from_iterable(rows)
        if self._left_out:
            flat = (math.nan if each is None else each for each in flat)
        return struct.pack(f"<{size * self._width}d", *flat)


def _grouped(columns: list[Column]) -> list[_Group]:
    places: dict[tuple[str, bool], list[int]] = {}
    for at, column in enumerate(columns):
        places.setdefault((column.spec.type, column.spec.required), []).append(at)
    if len(places) == 1:
        return [_Group(_all, columns[0].type, columns[0].spec.required)]
    return [_Group(_picker(each), columns[each[0]].type, required) for (_, required), each in places.items()]


def _all(record: Sequence[Any]) -> Sequence[Any]:
    return record


def _picker(keys: Sequence[Any]) -> Pick:
    if len(keys) > 1:
        return itemgetter(*keys)
    only = keys[0]
    return lambda record: (record[only],)
