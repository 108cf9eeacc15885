"""One row of a version's input example, as an inference request of the Open Inference Protocol. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from serving.input_schema import FieldDescription


def infer_request(example: Any, fields: Sequence[FieldDescription]) -> dict[str, Any]:
    """The body of `/infer` for the first row that has everything the signature requires.

    `example` is the JSON of MLflow's `input_example.json` or `serving_input_example.json`; NaN counts as missing.

    Raises:
        ValueError: no row of it can be asked; says why.
    """
    if not fields:
        raise ValueError("the version has no signature to ask by")
    if len(fields[0].shape) > 1:
        return _of_tensor(example, fields[0])
    rows = _records(_unwrapped(example))
    for row in rows:
        known = {field.name: row.get(field.name) for field in fields}
        if all(not _is_missing(known[field.name]) for field in fields if field.required):
            present = [field for field in fields if not _is_missing(known[field.name])]
            return {"inputs": [_input(field.name, field.datatype, [1], [known[field.name]]) for field in present]}
    raise ValueError("no row of the input example has every required column")


def _of_tensor(example: Any, field: FieldDescription) -> dict[str, Any]:
    rows = _unwrapped(example)
    if isinstance(rows, Mapping):
        rows = rows.get(field.name) or next(iter(rows.values()), None)
    if not isinstance(rows, list) or not rows:
        raise ValueError("the input example is no tensor")
    flat = list(_flat(rows[0]))
    if len(flat) != math.prod(field.shape[1:]):
        raise ValueError("a row of the input example has another shape than the signature")
    return {"inputs": [_input(field.name, field.datatype, [1, *field.shape[1:]], flat)]}


def _unwrapped(example: Any) -> Any:
    """What stands inside the envelope that scoring servers take."""
    if isinstance(example, Mapping):
        for envelope in ("dataframe_split", "dataframe_records", "inputs", "instances"):
            if envelope in example:
                return example[envelope]
    return example


def _records(example: Any) -> list[dict[str, Any]]:
    """Rows as records, from any of the shapes that MLflow writes: split, records, columns, one record."""
    if isinstance(example, list):
        return [each for each in example if isinstance(each, dict)]
    if not isinstance(example, Mapping):
        return []
    if "columns" in example and "data" in example:
        return [dict(zip(example["columns"], row, strict=False)) for row in example["data"]]
    columns = {name: value if isinstance(value, list) else [value] for name, value in example.items()}
    return [dict(zip(columns, row, strict=False)) for row in zip(*columns.values(), strict=False)]


def _flat(value: Any) -> Any:
    if not isinstance(value, list):
        yield value
        return
    for each in value:
        yield from _flat(each)


def _input(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
