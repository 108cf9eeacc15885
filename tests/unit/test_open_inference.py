"""Open Inference Protocol V2: between its JSON and ours."""

from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts import Held, InferenceResponse, ModelKind
from serving.errors import NotJson, ValidationFailed
from serving.input_schema import InputSchema
from serving.open_inference import InferRequest, model_metadata, read_infer, write_infer

FULL_NAMES = ("a", "n", "yes")
NUMERIC = InputSchema.compile(
    {"inputs": [{"name": name, "type": type_} for name, type_ in zip(FULL_NAMES, ("double", "long", "boolean"), strict=True)]}
)  # fmt: skip
MIXED = InputSchema.compile(
    {
        "inputs": [
            {"name": "carrier", "type": "string"},
            {"name": "temp", "type": "double", "required": False},
            {"name": "tags", "type": "array", "items": {"type": "string"}, "required": False},
        ]
    }
)
TENSOR = InputSchema.compile({"inputs": [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2, 2]}}]})
FREE = InputSchema.compile(None)


def tensor(name: str, shape: list[int], datatype: str, data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def read(schema: InputSchema, *inputs: Any, **more: Any) -> InferRequest:
    return read_infer(orjson.dumps({"inputs": list(inputs), **more}), schema)


def problems(schema: InputSchema, body: Any) -> dict[str, str]:
    with pytest.raises(ValidationFailed) as raised:
        read_infer(orjson.dumps(body), schema)
    return {each.path: f"{each.problem}, expected {each.expected}" for each in raised.value.fields}


def test_one_tensor_for_each_column() -> None:
    """Clients of the protocol could not ask a model of columns."""
    found = read(
        MIXED,
        tensor("temp", [2, 1], "FP32", [[1.5], [None]], parameters={"content_type": "np"}),
        tensor("carrier", [2], "BYTES", ["UA", "DL"]),
        tensor("tags", [2], "BYTES", ['["x"]', None]),
        id="42",
        parameters={"threshold": 0.5, "content_type": "pd", "binary_data_output": True},
        outputs=[{"name": "predict", "parameters": {"binary_data": True}}],
    )
    columns = {"temp": [1.5, None], "carrier": ["UA", "DL"], "tags": [["x"], None]}
    assert found == InferRequest("42", columns, {"threshold": 0.5}, ["predict"])
    assert orjson.loads(MIXED.encode(found.input_data, 2).body) == [["UA", 1.5, ["x"]], ["DL", None, None]]


@pytest.mark.parametrize("data", [[1, 2, 1, 3, 4, 0], [[1, 2, 1], [3, 4, 0]]])
def test_one_matrix_of_all_columns(data: Any) -> None:
    """Clients that hold a matrix would have to take it apart."""
    found = read(NUMERIC, tensor("input-0", [2, 3], "FP64", data))
    assert found == InferRequest(None, {"a": [1, 3], "n": [2, 4], "yes": [True, False]}, {}, None)
    assert NUMERIC.encode(found.input_data, 2).size == 2


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6, 7, 8], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]])
def test_a_tensor_for_a_tensor(data: Any) -> None:
    """Models of arrays could not be asked, or their numbers would be shuffled."""
    found = read(TENSOR, tensor("anything", [2, 2, 2], "FP32", data))
    assert found.input_data == {"inputs": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}
    assert TENSOR.encode(found.input_data, 2).size == 2


def test_without_a_signature_columns_go_by_their_names() -> None:
    """A model that was logged without one could not be asked in this protocol."""
    found = read(FREE, tensor("b", [1], "INT64", [1.0]), tensor("a", [1, 1], "BYTES", ["x"]))
    assert found.input_data == {"b": [1.0], "a": ["x"]}
    assert FREE.encode(found.input_data, 1).size == 1


GOOD = tensor("a", [1], "FP64", [1.0])


@pytest.mark.parametrize(
    ("schema", "body", "path"),
    [
        (NUMERIC, [], "body"),
        (NUMERIC, {}, "inputs"),
        (NUMERIC, {"inputs": []}, "inputs"),
        (NUMERIC, {"inputs": {}}, "inputs"),
        (NUMERIC, {"inputs": [GOOD], "input": 1}, "input"),
        (NUMERIC, {"inputs": [GOOD], "id": 5}, "id"),
        (NUMERIC, {"inputs": [GOOD], "parameters": []}, "parameters"),
        (NUMERIC, {"inputs": [GOOD], "outputs": {}}, "outputs"),
        (NUMERIC, {"inputs": [GOOD], "outputs": [{"name": "predict"}, {"name": "y"}]}, "outputs[1].name"),
        (NUMERIC, {"inputs": [GOOD, 5]}, "inputs[1]"),
        (NUMERIC, {"inputs": [GOOD, GOOD]}, "inputs[1].name"),
        (NUMERIC, {"inputs": [{**GOOD, "name": None}]}, "inputs[0].name"),
        (NUMERIC, {"inputs": [{**GOOD, "name": "b"}]}, "inputs[0].name"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": []}]}, "inputs[0].shape"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [True]}]}, "inputs[0].shape"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [-1]}]}, "inputs[0].shape"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [2**63, 2**63]}]}, "inputs[0].data"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [1, 1, 1]}]}, "inputs[0].shape"),
        (NUMERIC, {"inputs": [tensor("x", [1, 2], "FP64", [1, 2])]}, "inputs[0].shape"),
        (NUMERIC, {"inputs": [tensor("x", [1, 3], "BYTES", ["1", "2", "3"])]}, "inputs[0].datatype"),
        (NUMERIC, {"inputs": [{**GOOD, "datatype": "FP63"}]}, "inputs[0].datatype"),
        (NUMERIC, {"inputs": [{**GOOD, "datatype": "BOOL", "data": [True]}]}, "inputs[0].datatype"),
        (NUMERIC, {"inputs": [tensor("n", [1], "FP64", [1.0])]}, "inputs[0].datatype"),
        (NUMERIC, {"inputs": [{**GOOD, "data": None}]}, "inputs[0].data"),
        (NUMERIC, {"inputs": [{**GOOD, "data": [1.0, 2.0]}]}, "inputs[0].data"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [2, 1], "data": [[1.0], [2.0, 3.0]]}]}, "inputs[0].data[1]"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [2, 1], "data": [[1.0]]}]}, "inputs[0].data"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [2], "data": [1.0, "x"]}]}, "inputs[0].data[1]"),
        (NUMERIC, {"inputs": [{**GOOD, "shape": [2], "data": [1.0, True]}]}, "inputs[0].data[1]"),
        (NUMERIC, {"inputs": [tensor("n", [2], "INT64", [1.0, 1.5])]}, "inputs[0].data[1]"),
        (NUMERIC, {"inputs": [tensor("n", [2], "UINT8", [1, -1])]}, "inputs[0].data[1]"),
        (MIXED, {"inputs": [tensor("x", [1, 3], "FP64", [1, 2, 3])]}, "inputs[0].shape"),
        (MIXED, {"inputs": [tensor("tags", [2], "BYTES", ["[]", "["])]}, "inputs[0].data[1]"),
        (TENSOR, {"inputs": [tensor("x", [1, 4], "FP32", [1, 2, 3, 4])]}, "inputs[0].shape"),
        (TENSOR, {"inputs": [tensor("x", [1, 2, 2], "BYTES", ["1", "2", "3", "4"])]}, "inputs[0].datatype"),
        (TENSOR, {"inputs": [tensor(each, [1, 2, 2], "FP32", [1, 2, 3, 4]) for each in "xy"]}, "inputs"),
        (FREE, {"inputs": [tensor("x", [1, 2], "FP64", [1, 2])]}, "inputs[0].shape"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(schema: InputSchema, body: Any, path: str) -> None:
    """Whoever sends it would have to guess which of its tensors is meant."""
    assert list(problems(schema, body)) == [path]


def test_not_json_is_said_to_be_that() -> None:
    """A broken encoder on the client's side would be searched for in the dark."""
    with pytest.raises(NotJson, match="null"):
        read_infer(b'{"inputs": [{"data": [NaN]}]}', NUMERIC)


def held(kind: ModelKind, classes: list[Any] | None = None, *, probabilities: bool = False) -> Held:
    return Held("flights", "3", "sha", kind, classes or [], probabilities, "sklearn", "", 0.0, [], 0.0)


def answered(*predictions: dict[str, Any]) -> InferenceResponse:
    return InferenceResponse(UUID(int=0), list(predictions), [], 0.0, "3", {})


def test_metadata_say_what_goes_in_and_comes_out() -> None:
    """Clients build their requests from it."""
    found = model_metadata("flights", ["3", "4"], MIXED, held(ModelKind.CLASSIFIER, [0, 1], probabilities=True))
    assert found == {
        "name": "flights",
        "versions": ["3", "4"],
        "platform": "mlflow_sklearn",
        "inputs": [
            {"name": "carrier", "datatype": "BYTES", "shape": [-1]},
            {"name": "temp", "datatype": "FP64", "shape": [-1]},
            {"name": "tags", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "predict", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP64", "shape": [-1, 2]},
        ],
    }


@pytest.mark.parametrize(
    ("classes", "datatype", "data"),
    [
        ([0, 1], "INT64", [1, 0]),
        (["no", "yes"], "BYTES", ["yes", "no"]),
        ([False, True], "BOOL", [True, False]),
        ([0.5, 1.0], "FP64", [1.0, 0.5]),
        ([0, "x"], "BYTES", ['"x"', "0"]),
    ],
)
def test_labels_keep_their_type(classes: list[Any], datatype: str, data: list[Any]) -> None:
    """A client's decoder would fail on what the metadata promised."""
    classifier = held(ModelKind.CLASSIFIER, classes)
    body = write_infer("42", answered({"label": classes[1]}, {"label": classes[0]}), classifier, None)
    assert body == {
        "model_name": "flights",
        "model_version": "3",
        "id": "42",
        "outputs": [{"name": "predict", "datatype": datatype, "shape": [2], "data": data}],
    }
    assert model_metadata("flights", [], FREE, classifier)["outputs"][0]["datatype"] == datatype


def test_probabilities_are_a_matrix_and_only_what_is_wanted_comes() -> None:
    """A client's array would have the wrong shape, or an output that it did not ask for."""
    both = held(ModelKind.CLASSIFIER, [0, 1], probabilities=True)
    response = answered(*({"label": 1, "probabilities": {"0": 1 - p, "1": p}} for p in (0.75, 0.5, 1.0)))
    matrix = {"name": "probabilities", "datatype": "FP64", "shape": [3, 2], "data": [0.25, 0.75, 0.5, 0.5, 0.0, 1.0]}
    assert [each["name"] for each in write_infer("1", response, both, None)["outputs"]] == ["predict", "probabilities"]
    assert write_infer("1", response, both, ["probabilities"])["outputs"] == [matrix]
    with pytest.raises(ValidationFailed, match="probabilities"):
        write_infer("1", answered({"label": 1}), both, ["probabilities"])


@pytest.mark.parametrize(
    ("kind", "values", "datatype", "shape", "data"),
    [
        (ModelKind.REGRESSOR, [1.5, 2.0], "FP64", [2], [1.5, 2.0]),
        (ModelKind.REGRESSOR, [1, 2], "FP64", [2], [1, 2]),
        (ModelKind.REGRESSOR, [[1.5, 2.0], [3.0, 4.0]], "FP64", [2, 2], [1.5, 2.0, 3.0, 4.0]),
        (ModelKind.GENERIC, ["a", "b"], "BYTES", [2], ["a", "b"]),
        (ModelKind.GENERIC, [1, 2], "INT64", [2], [1, 2]),
        (ModelKind.GENERIC, [{"x": 1}, None], "BYTES", [2], ['{"x":1}', "null"]),
        (ModelKind.GENERIC, [[1], [1, 2]], "BYTES", [2], ["[1]", "[1,2]"]),
        (ModelKind.GENERIC, [[], []], "BYTES", [2], ["[]", "[]"]),
        (ModelKind.GENERIC, [["a"], ["b"]], "BYTES", [2, 1], ["a", "b"]),
    ],
)
def test_values_come_as_tensors(kind: ModelKind, values: list[Any], datatype: str, shape: list[int], data: Any) -> None:
    """What a model answers would reach clients of this protocol bent out of shape."""
    (found,) = write_infer("1", answered(*({"value": each} for each in values)), held(kind), None)["outputs"]
    assert found == {"name": "predict", "datatype": datatype, "shape": shape, "data": data}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 4) | st.floats() | st.sampled_from(["a", "NaN", "FP64", "INT64", "BYTES", "[]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "x"]), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 3), max_size=3)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "n", "yes", "carrier", "temp", "tags", "x"]) | JSON,
        "shape": SHAPES | JSON,
        "datatype": st.sampled_from(["FP64", "FP32", "INT64", "UINT8", "BOOL", "BYTES"]) | JSON,
        "data": st.lists(st.integers(0, 2) | JSON, max_size=4) | JSON,
    }
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS | JSON, max_size=3) | JSON}, optional={"id": JSON, "parameters": JSON, "outputs": JSON}
)


@given(
    st.sampled_from([NUMERIC, MIXED, TENSOR, FREE]),
    BODIES.map(orjson.dumps) | JSON.map(orjson.dumps) | st.binary(max_size=30),
)
def test_nothing_but_columns_or_a_refusal_comes_out(schema: InputSchema, body: bytes) -> None:
    """Somebody's strange body would be a 500, and look like our fault."""
    try:
        found = read_infer(body, schema)
        schema.encode(found.input_data, 5)
    except (NotJson, ValidationFailed) as error:
        orjson.dumps(error.body())


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(-9, 9), st.booleans()), min_size=1, max_size=4))
def test_columns_and_matrix_say_the_same(rows: list[tuple[float, int, bool]]) -> None:
    """The answer would depend on how a client happens to write its rows down."""
    size = len(rows)
    matrix = read(NUMERIC, tensor("input-0", [size, 3], "FP64", [float(each) for row in rows for each in row]))
    types = ("FP64", "INT64", "BOOL")
    columns = zip(FULL_NAMES, types, zip(*rows, strict=True), strict=True)
    named = read(NUMERIC, *(tensor(name, [size], type_, list(cells)) for name, type_, cells in columns))
    ours = {name: list(cells) for name, cells in zip(FULL_NAMES, zip(*rows, strict=True), strict=True)}
    assert NUMERIC.encode(matrix.input_data, 9) == NUMERIC.encode(named.input_data, 9) == NUMERIC.encode(ours, 9)
