"""Rows to try a model on before anybody relies on it: its own example, else rows made up from its signature."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.model_input import ModelInput, Raw

_MADE_UP = 8
_TEXTS = ["a", "b"]
_OTHERS: dict[str, Any] = {
    "datetime": "2013-04-01T12:00:00",
    "binary": "YQ==",
    "array": [],
    "object": {},
    "map": {},
    "any": None,
}


@dataclass(frozen=True)
class Trial:
    """Rows as requests would carry them; at least one."""

    rows: Raw
    columns: list[str] | None  # where the model has no signature
    own: bool  # its example, not made up


def trial_rows(folder: Path, model_input: ModelInput, model: object) -> Trial:
    """Rows to try the model on. Its encoders are looked through for texts they know; others may not be possible."""
    example = _read_example(folder, model_input)
    if example is not None and len(example[0]):
        return Trial(*example, own=True)
    return Trial(*_made_up(model_input, model), own=False)


def repeated(raw: Raw, rows: int) -> Raw:
    """So many rows, the given ones over and over."""
    times = math.ceil(rows / len(raw))
    return np.tile(raw, (times, 1))[:rows] if isinstance(raw, np.ndarray) else (raw * times)[:rows]


def _read_example(folder: Path, model_input: ModelInput) -> tuple[Raw, list[str] | None] | None:
    for name in ("serving_input_example.json", "input_example.json"):
        try:
            # With the json module: MLflow writes a bare NaN for a gap, which is no JSON.
            return _rows_of(json.loads((folder / name).read_text()), model_input)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # not there, or of a form that no request could have
    return None


def _rows_of(example: Any, model_input: ModelInput) -> tuple[Raw, list[str] | None]:
    """Raises KeyError, TypeError, ValueError or AttributeError where it does not fit the signature."""
    table = example.get("dataframe_split", example)
    if model_input.tensor is not None:
        return _tensor_rows(table.get("inputs", table.get("data"))), None
    columns, rows = table["columns"], table["data"]
    if not model_input.columns:
        return [[_filled(cell) for cell in row] for row in rows], columns
    optional = {each.name for each in model_input.columns if not each.required}
    place = {name: index for index, name in enumerate(columns)}
    if missing := set(model_input.names) - place.keys() - optional:
        raise KeyError(*missing)
    picked = [[_filled(row[place[name]]) if name in place else None for name in model_input.names] for row in rows]
    return np.array(picked, np.float64) if model_input.numeric else picked, None


def _tensor_rows(rows: Any) -> Raw:
    if isinstance(rows, dict):
        (rows,) = rows.values()
    return list(rows)


def _filled(cell: Any) -> Any:
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _made_up(model_input: ModelInput, model: object) -> tuple[Raw, list[str] | None]:
    numbers = np.random.default_rng(0)
    if model_input.tensor is not None:
        shape = [1 if each < 0 else each for each in model_input.tensor.shape[1:]]
        made: Raw = numbers.random((_MADE_UP, *shape)).tolist()
        return made, None
    if not model_input.columns:
        return _without_signature(numbers, model)
    texts = dict(_known_texts(model))
    rows = [
        [_cell(each.type, numbers, place, texts.get(each.name, _TEXTS)) for each in model_input.columns]
        for place in range(_MADE_UP)
    ]
    return np.array(rows, np.float64) if model_input.numeric else rows, None


def _without_signature(numbers: np.random.Generator, model: object) -> tuple[Raw, list[str] | None]:
    names = getattr(model, "feature_names_in_", None)
    width = len(names) if names is not None else getattr(model, "n_features_in_", 0)
    return numbers.random((_MADE_UP, width)), None if names is None else list(names)


def _cell(type_: str, numbers: np.random.Generator, place: int, texts: list[str]) -> Any:
    if type_ in ("double", "float"):
        return float(np.float32(numbers.random() * 2))
    if type_ in ("long", "integer"):
        return int(numbers.integers(1, 10))
    if type_ == "boolean":
        return bool(place % 2)
    return texts[place % len(texts)] if type_ == "string" else _OTHERS.get(type_)


def _known_texts(model: object) -> Iterator[tuple[str, list[str]]]:
    """Columns of texts, and some that the encoders of a scikit-learn pipeline have seen in training."""
    for _, step in getattr(model, "steps", []):
        yield from _known_texts(step)
    for _, transformer, columns in getattr(model, "transformers_", []):
        categories = getattr(_first_step(transformer), "categories_", None)
        if categories is not None and isinstance(columns, list):
            for column, known in zip(columns, categories, strict=False):
                texts = [each for each in known if isinstance(each, str)]
                if texts:
                    yield column, texts


def _first_step(transformer: Any) -> Any:
    # In front of an encoder there may be an imputer, which keeps the texts as they are.
    steps = getattr(transformer, "steps", [])
    encoders = [step for _, step in steps if hasattr(step, "categories_")]
    return encoders[0] if encoders else transformer
