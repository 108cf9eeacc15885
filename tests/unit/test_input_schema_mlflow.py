"""What we let through, held against MLflow's own enforcement of the same signature."""

import base64
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from mlflow.models import infer_signature
from mlflow.models.utils import _enforce_params_schema, _enforce_schema
from mlflow.types import ParamSchema, Schema

from serving.contracts import Rows
from serving.errors import ValidationFailed
from serving.input_schema import InputSchema
from serving.model_input import ModelInput

GAPS = [None, "NaN"]
CELLS: dict[str, list[Any]] = {
    "double": [0.5, 3, -1e300, "Infinity", 2**60, "x", True],
    "float": [0.5, 3, 1e39, "-Infinity", "x"],
    "long": [3, 4.0, 2.5, -(2**53), 2**60, "3"],
    "integer": [3, 4.0, 2**31 - 1, 2**31, False],
    "boolean": [True, False, 1],
    "string": ["UA", "", "é", 5],
    "datetime": ["2013-04-01", "2013-04-01T12:00:00.123456+02:00", "1700-01-01T00:00:00Z", "2262-04-10", "soon"],
    "binary": [base64.b64encode(b"\0\xff").decode(), "", "?"],
}
NESTED: list[tuple[dict[str, Any], list[Any]]] = [
    ({"type": "array", "items": {"type": "double"}}, [[], [1], [0.5, 2], [True], ["x"], [None]]),
    ({"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, [[], [["a"], []], ["a"]]),
    ({"type": "array", "items": {"type": "boolean"}}, [[True], [], [1]]),
    ({"type": "map", "values": {"type": "long"}}, [{}, {"a": 1}, {"a": 1.0, "b": 2**62}, {"a": 1.5}]),
    (
        {
            "type": "object",
            "properties": {
                "id": {"type": "long", "required": True},
                "note": {"type": "string", "required": False},
                "any": {"type": "any", "required": False},
            },
        },
        [{"id": 1}, {"id": 1, "note": None}, {"id": 2, "note": "n", "any": [1, "x"]}, {}, {"id": 1, "more": 1}],
    ),
]
WHOLE = ("long", "integer")


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Columns of a signature, and a request that fits it or nearly does."""
    inputs: list[dict[str, Any]] = []
    values: dict[str, st.SearchStrategy[Any]] = {}
    for at in range(draw(st.integers(1, 4))):
        name, required = f"c{at}", draw(st.booleans())
        if draw(st.integers(0, 3)):
            type_ = draw(st.sampled_from(sorted(CELLS)))
            spec, cells = {"type": type_}, CELLS[type_]
        else:
            spec, cells = draw(st.sampled_from(NESTED))
        # MLflow's DataFrame has no gaps among integers: a difference on purpose, see serving.input_schema.schema.
        gaps = GAPS if spec["type"] not in WHOLE or required else []
        inputs.append({"name": name, "required": required, **spec})
        values[name] = st.sampled_from(cells + gaps)
    size = draw(st.integers(0, 3))
    rows = {name: draw(st.lists(each, min_size=max(1, size), max_size=max(1, size))) for name, each in values.items()}
    left_out = draw(st.sampled_from(["", *rows])) if draw(st.booleans()) else ""
    return inputs, {name: each if size else each[0] for name, each in rows.items() if name != left_out}


def as_worker_builds(inputs: list[dict[str, Any]], rows: Rows) -> Any:
    model_input = ModelInput.of_signature({"inputs": orjson.dumps(inputs).decode()})
    return model_input.to_frame(model_input.read(rows.encoding, [rows.body], [rows.size]), None)


@settings(max_examples=400, deadline=None)
@given(questions())
def test_what_we_accept_mlflow_accepts(drawn: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    """A request would pass our check and be refused by the model: a 500 that counts against the version."""
    inputs, input_data = drawn
    try:
        rows = InputSchema.compile({"inputs": inputs}).encode(input_data, 10)
    except ValidationFailed:
        event("refused")
        return
    # A column of gaps only has no integers to tell: it stands for the difference that `questions` leaves out.
    if any(each["type"] in WHOLE and input_data.get(each["name"]) is None for each in inputs):
        return
    event("accepted")
    frame = as_worker_builds(inputs, rows)
    enforced = _enforce_schema(frame, Schema.from_json(orjson.dumps(inputs).decode()))
    assert len(enforced) == rows.size
    assert list(enforced.columns) == [each["name"] for each in inputs]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["float64", "float32", "int64", "int32", "uint8", "bool", "str"]),
    st.sampled_from([(), (2,), (2, 1)]),
    st.sampled_from([None, "x"]),
    st.lists(st.sampled_from([0, 1, 2.5, 300, -1, None, "Infinity", "a", True]), min_size=2, max_size=2),
)
def test_tensors_that_we_accept_mlflow_accepts(
    dtype: str, dims: tuple[int, ...], name: str | None, elements: list[Any]
) -> None:
    """The same, for models that take arrays."""
    spec: dict[str, Any] = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *dims]}}
    inputs = [spec if name is None else {**spec, "name": name}]
    row: Any = {(): elements, (2,): [elements], (2, 1): [[[each] for each in elements]]}[dims]
    try:
        rows = InputSchema.compile({"inputs": inputs}).encode({"inputs": row}, 10)
    except ValidationFailed:
        return
    _enforce_schema(as_worker_builds(inputs, rows), Schema.from_json(orjson.dumps(inputs).decode()))


PARAMS: list[dict[str, Any]] = [
    {"name": "d", "type": "double", "default": 0.5, "shape": None},
    {"name": "f", "type": "float", "default": None, "shape": None},
    {"name": "n", "type": "long", "default": 3, "shape": None},
    {"name": "i", "type": "integer", "default": 3, "shape": None},
    {"name": "s", "type": "string", "default": "x", "shape": None},
    {"name": "b", "type": "boolean", "default": True, "shape": None},
    {"name": "t", "type": "datetime", "default": "2020-01-01", "shape": None},
    {"name": "l", "type": "double", "default": [1.0], "shape": [-1]},
]
GIVEN = st.dictionaries(
    st.sampled_from([each["name"] for each in PARAMS]),
    st.sampled_from([None, 1, 2.0, 0.25, -5, 2**40, "x", "2013-04-01T12:00:00Z", True, [], [1, 2.5], ["a"]]),
)


@settings(max_examples=300, deadline=None)
@given(GIVEN)
def test_params_that_we_accept_mlflow_accepts(params: dict[str, Any]) -> None:
    """The model would be given a param that its signature does not allow."""
    schema = InputSchema.compile({"inputs": [{"name": "a", "type": "double"}], "params": PARAMS})
    try:
        ours = schema.parameters(params, binary=False, classifier=False).params
    except ValidationFailed:
        return
    assert (
        _enforce_params_schema(dict(ours), ParamSchema.from_json(orjson.dumps(PARAMS).decode())).keys() == ours.keys()
    )


@pytest.mark.filterwarnings("ignore:Hint. Inferred schema contains integer:UserWarning")
def test_what_mlflow_infers_compiles_in_both_forms() -> None:
    """A version would be promoted by the registry's form of its signature, and refused by its artifact's."""
    frame = pd.DataFrame(
        {"a": [1.0, np.nan], "n": [1, 2], "s": ["x", "y"], "b": [True, False], "t": pd.to_datetime(["2020-01-01"] * 2)}
    )
    signature = infer_signature(frame, params={"k": 3})
    parts = {name: getattr(signature, name) for name in ("inputs", "outputs", "params")}
    listed = InputSchema.compile({name: part.to_dict() if part else None for name, part in parts.items()})
    texts = InputSchema.compile(signature.to_dict())
    row = {"a": None, "n": 1, "s": "x", "b": True, "t": "2020-01-01"}
    assert listed.columns == texts.columns
    assert [each.name for each in listed.columns] == list(frame.columns)
    assert listed.encode(row, 1) == texts.encode(row, 1)
