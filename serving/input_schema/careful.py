"""The slow way through columns: cell by cell, for what must be converted and to say all that is wrong."""

from difflib import get_close_matches
from typing import Any

from serving.input_schema.cells import WrongCell
from serving.input_schema.column import Column
from serving.input_schema.problems import Problems, invalid, kind_of, listed, under

ROOT = "input_data"

# Looking for a near match costs up to milliseconds, so only the first few names get one, and not among thousands.
_MATCHED = 3
_MATCHED_AMONG = 300


def read_carefully(columns: dict[str, Column], given: Any, max_rows: int) -> tuple[int, list[list[Any]]]:
    """Rows of one request: how many, and per column its cells as they travel, missing ones as None.

    Raises:
        ValidationFailed: with everything that is wrong, up to a bound.
    """
    if not isinstance(given, dict):
        raise invalid(ROOT, kind_of(given), "an object of columns")
    problems = Problems()
    _check_names(columns, given, problems)
    known = {name: given[name] for name in columns if name in given}
    if _is_batch(columns, known, problems):
        size, lists = _read_batch(columns, known, max_rows, problems)
    else:
        size, lists = 1, [[_read_cell(column, known, problems)] for column in columns.values()]
    problems.check()
    return size, lists


def _read_batch(
    columns: dict[str, Column], known: dict[str, Any], max_rows: int, problems: Problems
) -> tuple[int, list[list[Any]]]:
    size = check_lengths({name: each for name, each in known.items() if isinstance(each, list)}, max_rows, problems)
    if not 0 < size <= max_rows:
        return size, []
    return size, [_read_list(column, known.get(name), size, problems) for name, column in columns.items()]


def _check_names(columns: dict[str, Column], given: dict[str, Any], problems: Problems) -> None:
    """Note unknown columns, the first with a near match, and missing ones."""
    names = list(columns)
    for name in given:
        if name not in columns and not problems.full:
            unknown = _unknown(str(name), names, len(problems.found))
            problems.add(under(ROOT, str(name)), unknown, f"one of {listed(names)}")
    for name, column in columns.items():
        if column.spec.required and name not in given:
            problems.add(under(ROOT, name), "missing", column.expected)
    if not given and not problems.found:
        problems.add(ROOT, "empty", f"at least one of {listed(names)}")


def check_lengths(lists: dict[str, list[Any]], max_rows: int, problems: Problems) -> int:
    """The rows of columns of equal length; notes unequal ones, none, and too many."""
    first, cells = next(iter(lists.items()))
    size = len(cells)
    for name, each in lists.items():
        if len(each) != size:
            problems.add(under(ROOT, name), f"{len(each)} values", f"{size} values, as in {under(ROOT, first)}")
    if size == 0:
        problems.add(ROOT, "no rows", f"1 to {max_rows} rows")
    if size > max_rows:
        problems.add(ROOT, f"{size} rows", f"at most {max_rows} rows in one request")
    return size


def _unknown(name: str, names: list[str], before: int) -> str:
    if before >= _MATCHED or len(names) > _MATCHED_AMONG:
        return "unknown column"
    near = get_close_matches(name[:64], names, n=1)
    return f"unknown column, did you mean '{near[0]}'?" if near else "unknown column"


def _is_batch(columns: dict[str, Column], known: dict[str, Any], problems: Problems) -> bool:
    """Whether these are lists of cells rather than one record. Notes columns that differ in this, and takes them out."""
    votes: dict[str, bool] = {}
    for name, value in known.items():
        # A null may be a missing cell or a missing column.
        if columns[name].depth == 0 and value is not None:
            votes[name] = isinstance(value, list)
    if not votes:
        return any(_is_list_of_lists(columns[name], value) for name, value in known.items())
    first, batch = next(iter(votes.items()))
    for name, vote in votes.items():
        if vote != batch:
            was, other = ("a list", "a single value") if vote else ("a single value", "a list")
            expected = f"{other}, as {under(ROOT, first)} is: one value for every column, or a list for every column"
            problems.add(under(ROOT, name), was, expected)
            del known[name]
    return batch


def _is_list_of_lists(column: Column, value: Any) -> bool:
    """Whether this cell of an array column lies in one list more than its values do."""
    return column.depth is not None and _lists_around(value, column.depth + 1) > column.depth


def _lists_around(value: Any, most: int) -> int:
    if most == 0 or not isinstance(value, list):
        return 0
    return 1 + max((_lists_around(each, most - 1) for each in value), default=0)


def _read_cell(column: Column, known: dict[str, Any], problems: Problems) -> Any:
    if column.spec.name not in known:
        return None  # not required, or noted already
    try:
        return column.read(known[column.spec.name])
    except WrongCell as wrong:
        _note(column, wrong, "", problems)
        return None


def _read_list(column: Column, cells: Any, size: int, problems: Problems) -> list[Any]:
    if cells is None and not column.spec.required:
        return [None] * size
    if not isinstance(cells, list):
        _note_no_list(column, cells, size, problems)
        return []
    if not cells or column.accepts(cells):
        return cells
    read, result = column.read, []
    for at, value in enumerate(cells):
        try:
            result.append(read(value))
        except WrongCell as wrong:
            _note(column, wrong, f"[{at}]", problems)
            if problems.full:
                break
    return result


def _note_no_list(column: Column, cells: Any, size: int, problems: Problems) -> None:
    path = under(ROOT, column.spec.name)
    # A missing column, and one that differs in form, are noted already.
    if not any(each.path == path for each in problems.found):
        problems.add(path, kind_of(cells), f"a list of {size} values")


def _note(column: Column, wrong: WrongCell, at: str, problems: Problems) -> None:
    path = under(ROOT, column.spec.name) + at + wrong.below
    problems.add(path, wrong.problem, wrong.expected or column.expected)
