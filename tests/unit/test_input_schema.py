"""What a signature lets through, in which form, and what it says about the rest."""

import math
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts import Encoding, Parameters, Rows
from serving.errors import SignatureNotSupported, ValidationFailed
from serving.input_schema import FieldDescription, InputSchema
from serving.input_schema.schema import MOST_VARIANT

NAN = math.nan


def column(name: str, type: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type, "required": True, **more}


def optional(name: str, type: str) -> dict[str, Any]:
    return column(name, type, required=False)


def compiled(*inputs: dict[str, Any], params: list[dict[str, Any]] | None = None) -> InputSchema:
    return InputSchema.compile({"inputs": list(inputs), "outputs": None, "params": params})


def tensor(dtype: str, *dims: int, name: str | None = None) -> InputSchema:
    spec: dict[str, Any] = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *dims]}}
    return compiled(spec if name is None else {**spec, "name": name})


def numbers(rows: Rows) -> list[float]:
    assert rows.encoding is Encoding.FLOATS
    return list(struct.unpack(f"<{len(rows.body) // 8}d", rows.body))


def cells(rows: Rows) -> Any:
    assert rows.encoding is Encoding.JSON
    return orjson.loads(rows.body)


def problems(schema: InputSchema, input_data: Any, max_rows: int = 1000) -> dict[str, str]:
    with pytest.raises(ValidationFailed) as raised:
        schema.encode(input_data, max_rows)
    return {each.path: f"{each.problem}, expected {each.expected}" for each in raised.value.fields}


NUMERIC = compiled(column("a", "double"), column("n", "long"), column("yes", "boolean"))
MIXED = compiled(column("carrier", "string"), column("temp", "double"), optional("wind", "double"))


def test_a_record_of_numbers_travels_as_floats_in_the_signatures_order() -> None:
    """A model that is given its columns in another order answers with confidence, and wrongly."""
    rows = NUMERIC.encode({"yes": True, "n": 3, "a": 0.5}, 10)
    assert (rows.size, rows.variant, numbers(rows)) == (1, b"", [0.5, 3.0, 1.0])


def test_columns_travel_row_after_row() -> None:
    """Rows would be mixed with each other."""
    rows = NUMERIC.encode({"n": [1, 2], "yes": [True, False], "a": [0.5, 1]}, 10)
    assert (rows.size, numbers(rows)) == (2, [0.5, 1.0, 1.0, 1.0, 2.0, 0.0])


def test_mixed_columns_travel_as_json_rows() -> None:
    """Models with strings could not be served."""
    assert cells(MIXED.encode({"temp": 1.5, "carrier": "UA", "wind": None}, 10)) == [["UA", 1.5, None]]
    rows = MIXED.encode({"temp": [1.5, 2], "carrier": ["UA", "é"]}, 10)
    assert (rows.size, cells(rows)) == (2, [["UA", 1.5, None], ["é", 2, None]])


@pytest.mark.parametrize(
    ("input_data", "expected"),
    [
        ([1, 2], {"input_data": "a list, expected an object of columns"}),
        (None, {"input_data": "null, expected an object of columns"}),
        ({"a": 1.0, "n": 1}, {"input_data.yes": "missing, expected true or false"}),
        ({"a": "1", "n": 1, "yes": True}, {"input_data.a": "a string, expected a number (double)"}),
        ({"a": True, "n": 1, "yes": True}, {"input_data.a": "a boolean, expected a number (double)"}),
        ({"a": 1, "n": True, "yes": True}, {"input_data.n": "a boolean, expected an integer (long)"}),
        ({"a": 1, "n": 1.5, "yes": True}, {"input_data.n": "a number with a fraction, expected an integer (long)"}),
        ({"a": 1, "n": 1, "yes": 1}, {"input_data.yes": "a number, expected true or false"}),
        ({"a": None, "n": 1, "yes": True}, {"input_data.a": "null, expected a number (double)"}),
        ({"a": NAN, "n": 1, "yes": True}, {"input_data.a": "NaN, expected a number (double)"}),
        ({"a": "NaN", "n": 1, "yes": True}, {"input_data.a": "NaN, expected a number (double)"}),
        ({"a": [1, "x"], "n": [1, 2], "yes": [True, 0]},
         {"input_data.a[1]": "a string, expected a number (double)",
          "input_data.yes[1]": "a number, expected true or false"}),
        ({"a": [1, 2], "n": [1], "yes": [True, True]}, {"input_data.n": "1 values, expected 2 values, as in input_data.a"}),
        ({"a": [], "n": [], "yes": []}, {"input_data": "no rows, expected 1 to 3 rows"}),
        ({"a": [1] * 4, "n": [1] * 4, "yes": [True] * 4}, {"input_data": "4 rows, expected at most 3 rows in one request"}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_path(input_data: Any, expected: dict[str, str]) -> None:
    """Whoever sends it would have to guess which field is meant."""
    assert problems(NUMERIC, input_data, max_rows=3) == expected


def test_all_that_is_wrong_is_told_at_once() -> None:
    """A client would mend one field, ask again, and learn of the next."""
    found = problems(MIXED, {"temp": "hot", "winf": 3.0, "wind": [1.0]})
    assert found.keys() == {"input_data.carrier", "input_data.temp", "input_data.winf", "input_data.wind"}
    assert "did you mean 'wind'?" in found["input_data.winf"]


def test_one_cell_beside_lists_is_refused() -> None:
    """It could mean the same value for every row, or a mistake."""
    assert list(problems(NUMERIC, {"a": [1, 2], "n": 1, "yes": [True, True]})) == ["input_data.n"]
    assert list(problems(NUMERIC, {"a": 1, "n": [1], "yes": True})) == ["input_data.n"]


def test_a_million_mistakes_are_told_by_the_first_hundred() -> None:
    """An answer would be larger than its request."""
    assert len(problems(compiled(column("a", "double")), {"a": ["x"] * 5000}, 10_000)) == 100
    assert len(problems(MIXED, {str(at): 1 for at in range(5000)})) == 100


def test_no_value_is_repeated_in_an_error() -> None:
    """Personal data would end up in the logs of whoever writes errors down."""
    for type_ in ("double", "long", "boolean", "datetime", "binary", "integer"):
        schema = compiled(column("a", type_), column("b", "string"))
        assert "secret" not in str(problems(schema, {"a": "secret!", "b": "x"}))


def test_integers_without_loss() -> None:
    """An account number would silently become its neighbour."""
    floats, json = compiled(column("n", "long")), compiled(column("n", "long"), column("s", "string"))
    assert numbers(floats.encode({"n": 2**53}, 1)) == [2.0**53]
    assert numbers(floats.encode({"n": 3.0}, 1)) == [3.0]
    assert "2**53" in problems(floats, {"n": 2**53 + 1})["input_data.n"]
    assert "2**53" in problems(floats, {"n": [0, -(2**53) - 1]})["input_data.n[1]"]
    assert cells(json.encode({"n": 2**63 - 1, "s": ""}, 1)) == [[2**63 - 1, ""]]
    assert problems(json, {"n": 2**63, "s": ""})
    assert problems(compiled(column("n", "integer")), {"n": 2**31})
    assert problems(compiled(column("n", "integer")), {"n": -(2**31) - 1})
    assert numbers(compiled(column("n", "integer")).encode({"n": -(2**31)}, 1)) == [-(2.0**31)]


def test_gaps_are_nan_among_floats_and_null_in_json() -> None:
    """Real data have gaps: most rows of a model that was trained with them could not be asked about."""
    schema = compiled(column("a", "double"), optional("b", "double"), optional("n", "long"), optional("yes", "boolean"))
    for record in (
        {"a": 1.0},
        {"a": 1.0, "b": None, "n": None, "yes": None},
        {"a": 1.0, "b": "NaN"},
        {"a": 1, "b": NAN},
    ):
        np.testing.assert_array_equal(numbers(schema.encode(record, 1)), [1.0, NAN, NAN, NAN])
    batch = {"a": [1.0, 2.0], "b": [None, 3.0], "yes": None}
    np.testing.assert_array_equal(numbers(schema.encode(batch, 2)), [1, NAN, NAN, NAN, 2, 3, NAN, NAN])
    for record in ({"carrier": "UA", "temp": 1, "wind": "NaN"}, {"carrier": "UA", "temp": 1, "wind": NAN}):
        assert cells(MIXED.encode(record, 1)) == [["UA", 1, None]]


def test_infinity_travels_as_a_text_where_json_has_no_word_for_it() -> None:
    """orjson writes null for it: a model would be told that the value is missing."""
    assert numbers(compiled(column("a", "double")).encode({"a": "-Infinity"}, 1)) == [-math.inf]
    for value in ("Infinity", math.inf):
        assert cells(MIXED.encode({"carrier": "UA", "temp": value}, 1)) == [["UA", "Infinity", None]]
    assert numbers(compiled(column("a", "float")).encode({"a": "Infinity"}, 1)) == [math.inf]
    assert problems(compiled(column("a", "long")), {"a": "Infinity"})


def test_what_32_bits_cannot_hold_is_refused() -> None:
    """It would become infinite on its way into the model."""
    schema = compiled(column("a", "float"))
    assert problems(schema, {"a": 1e39}) == {"input_data.a": "too large, expected a number (float, 32 bit)"}
    assert problems(schema, {"a": [0.0, -1e39]}).keys() == {"input_data.a[1]"}
    assert problems(compiled(column("a", "double")), {"a": 10**400})


def test_times_travel_as_utc() -> None:
    """A zone that is dropped moves every flight by hours."""
    schema = compiled(column("t", "datetime"))
    given = ["2013-04-01T12:00:00+02:00", "2013-04-01T10:00:00Z", "2013-04-01T10:00:00", "2013-04-01"]
    rows = cells(schema.encode({"t": given}, 9))
    assert rows == [["2013-04-01T10:00:00"], ["2013-04-01T10:00:00"], ["2013-04-01T10:00:00"], ["2013-04-01T00:00:00"]]
    for wrong in ("soon", "1500-01-01", "9999-12-31T23:59:59-23:00", "", 5):
        assert problems(schema, {"t": wrong}).keys() == {"input_data.t"}


def test_bytes_are_base64() -> None:
    """A picture would be cut where its text stops being base64."""
    schema = compiled(column("b", "binary"))
    assert cells(schema.encode({"b": "AAECaGk="}, 1)) == [["AAECaGk="]]
    for wrong in ("AAE", "AA EC", "é", 5):
        assert problems(schema, {"b": wrong}).keys() == {"input_data.b"}


def test_lists_and_objects_as_cells() -> None:
    """Generic models with nested inputs could not be served."""
    schema = compiled(
        column("tags", "array", items={"type": "array", "items": {"type": "double"}}),
        column("who", "object", properties={"id": {"type": "long", "required": True}, "x": {"type": "any", "required": False}}),
        column("more", "map", values={"type": "string"}),
        optional("any", "any"),
    )  # fmt: skip
    record: dict[str, Any] = {"tags": [[1.0], []], "who": {"id": 5}, "more": {"k": "v"}}
    assert cells(schema.encode(record, 1)) == [[[[1.0], []], {"id": 5}, {"k": "v"}, None]]
    batch = {"tags": [[], [[2.5]]], "who": [{"id": 5, "x": [1]}, {"id": 6}], "more": [{}, {}], "any": [[1], "x"]}
    assert cells(schema.encode(batch, 2)) == [[[], {"id": 5, "x": [1]}, {}, [1]], [[[2.5]], {"id": 6}, {}, "x"]]
    wrong: dict[str, Any] = {"tags": [[1.0, "x"]], "who": {"id": None}, "more": {"k": 1}, "any": {"deep": [NAN]}}
    assert problems(schema, wrong).keys() == {
        "input_data.tags[0][1]", "input_data.who.id", "input_data.more.k", "input_data.any"
    }  # fmt: skip
    alone = compiled(column("tags", "array", items={"type": "long"}))
    assert (alone.encode({"tags": [1, 2]}, 5).size, alone.encode({"tags": [[1, 2], []]}, 5).size) == (1, 2)


def test_a_tensor_is_flat_and_row_major() -> None:
    """Pixels would be shuffled."""
    schema = tensor("float64", 2, 2)
    assert (schema.tensor is not None, schema.columns, schema.encoding) == (True, [], Encoding.FLOATS)
    rows = schema.encode({"inputs": [[[1, 2], [3, 4.5]], [[5, 6], [7, "Infinity"]]]}, 2)
    assert (rows.size, numbers(rows)) == (2, [1, 2, 3, 4.5, 5, 6, 7, math.inf])
    assert numbers(tensor("bool", name="x").encode({"x": [True, False]}, 2)) == [1, 0]
    assert numbers(tensor("int64", name="x").encode({"inputs": [3.0]}, 2)) == [3]
    np.testing.assert_array_equal(numbers(tensor("float32", 1).encode({"inputs": [[None], ["NaN"]]}, 2)), [NAN, NAN])
    texts = [[["a", "b", "c"], ["d", "e", "f"]], [["g", "h", "i"], ["j", "k", "l"]]]
    assert cells(tensor("str", 2, 3).encode({"inputs": texts}, 2)) == texts


@pytest.mark.parametrize(
    ("input_data", "path"),
    [
        ({"inputs": [[1, 2], [3]]}, "input_data.inputs[1]"),
        ({"inputs": [[1, 2], 3]}, "input_data.inputs[1]"),
        ({"inputs": [[1, [2]]]}, "input_data.inputs[0][1]"),
        ({"inputs": [[1, "x"]]}, "input_data.inputs[0][1]"),
        ({"inputs": [[1, True]]}, "input_data.inputs[0][1]"),
        ({"inputs": []}, "input_data.inputs"),
        ({"inputs": [[1, 2]] * 4}, "input_data.inputs"),
        ({"inputs": 5}, "input_data.inputs"),
        ({"input": [[1, 2]]}, "input_data.input"),
        ({}, "input_data"),
        ([[1, 2]], "input_data"),
    ],
)
def test_a_tensor_of_another_shape_is_refused(input_data: Any, path: str) -> None:
    """numpy would raise in the worker, and it would count as the model's fault."""
    assert list(problems(tensor("float64", 2), input_data, max_rows=3)) == [path]


def test_a_tensor_of_integers_keeps_their_range() -> None:
    """300 in a byte is 44, and nobody is told."""
    assert problems(tensor("uint8", 1), {"inputs": [[300]]}).keys() == {"input_data.inputs[0][0]"}
    assert problems(tensor("uint8", 1), {"inputs": [[-1]]})
    assert problems(tensor("int64", 1), {"inputs": [[2**53 + 1]]})
    assert problems(tensor("int64", 1), {"inputs": [[None]]})


def test_without_a_signature_any_flat_columns_go_with_their_names() -> None:
    """Models that were logged without one could not be served, or would be mixed in one batch."""
    schema = InputSchema.compile(None)
    record = {"b": 1, "a": "x", "c": None}
    rows = schema.encode(record, 9)
    assert (rows.size, cells(rows), rows.variant) == (1, [[1, "x", None]], b'{"columns":["b","a","c"]}')
    batch = {"b": [1, 2], "a": [True, 2.5]}
    assert cells(schema.encode(batch, 9)) == [[1, True], [2, 2.5]]
    wrong: Any
    for wrong in (
        {},
        [],
        {"a": {}},
        {"a": [[1]]},
        {"a": [1], "b": 1},
        {"a": [1], "b": [1, 2]},
        {"a": []},
        {"a": 2**70},
    ):
        assert problems(schema, wrong)
    assert "at most" in str(problems(schema, {"x" * MOST_VARIANT: 1}))


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ([], "no inputs"),
        ("nonsense", "not JSON"),
        ([column("a", "sparkml vector")], "sparkml vector"),
        ([column("a", "double"), column("a", "double")], "same name"),
        ([column("a", "array", items={"type": "float"})], "float"),
        ([column("a", "any")], "any"),
        ([column("a", "array")], "items"),
        ([{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, -1]}}], "first dimension"),
        ([{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [5, 3]}}], "first dimension"),
        ([{"type": "tensor", "tensor-spec": {"dtype": "complex128", "shape": [-1]}}], "complex128"),
        ([{"type": "tensor", "tensor-spec": {}}], "dtype"),
        ([{"type": "tensor", "name": "a", "tensor-spec": {"dtype": "float64", "shape": [-1]}}] * 2, "single tensor"),
    ],
)
def test_a_signature_that_cannot_be_served_says_why(inputs: Any, why: str) -> None:
    """A version would be promoted, and refuse every request."""
    with pytest.raises(SignatureNotSupported, match=why):
        InputSchema.compile({"inputs": inputs})


def test_signatures_as_mlflow_writes_them() -> None:
    """The registry keeps lists, the artifact's MLmodel keeps JSON texts; old ones say optional for not required."""
    text = orjson.dumps([{"name": "a", "type": "double"}, {"name": "b", "type": "double", "optional": True}]).decode()
    schema = InputSchema.compile({"inputs": text, "outputs": None, "params": None})
    assert [each.required for each in schema.columns] == [True, False]
    unnamed = compiled({"type": "double", "required": True}, {"type": "long", "required": True})
    assert numbers(unnamed.encode({"1": 5, "0": 0.5}, 1)) == [0.5, 5]


def test_what_is_described() -> None:
    """Clients of the Open Inference Protocol ask before they send."""
    assert MIXED.describe() == [
        FieldDescription("carrier", "BYTES", [-1], required=True),
        FieldDescription("temp", "FP64", [-1], required=True),
        FieldDescription("wind", "FP64", [-1], required=False),
    ]
    assert tensor("uint8", 28, 28, name="x").describe() == [FieldDescription("x", "UINT8", [-1, 28, 28], required=True)]
    assert InputSchema.compile(None).describe() == []


PARAMS: list[dict[str, Any]] = [
    {"name": "k", "type": "long", "default": 3, "shape": None},
    {"name": "stop", "type": "string", "default": ["."], "shape": [-1]},
    {"name": "t", "type": "double", "default": None, "shape": None},
]


def test_parameters_left_out_take_their_defaults() -> None:
    """The same question would be answered differently from one batch to the next."""
    schema = compiled(column("a", "double"), params=PARAMS)
    found = schema.parameters({}, binary=True, classifier=True)
    assert found == Parameters(None, True, {"k": 3, "stop": ["."], "t": None})
    given = schema.parameters({"threshold": 0.25, "k": 5.0, "t": 1}, binary=True, classifier=True)
    assert given == Parameters(0.25, True, {"k": 5, "stop": ["."], "t": 1.0})
    usual = b'{"params":{"k":3,"stop":["."],"t":null}}'
    assert schema.encode({"a": 1.0}, 1).variant == schema.variant({}, found.params) == schema.variant({}, {}) == usual
    assert schema.variant({}, given.params) == schema.variant({}, {"t": 1.0, "k": 5}) != usual
    assert NUMERIC.variant({"a": 1}, {}) == b""


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"treshold": 0.5}, "parameters.treshold"),
        ({"threshold": 1.5}, "parameters.threshold"),
        ({"threshold": True}, "parameters.threshold"),
        ({"threshold": "0.5"}, "parameters.threshold"),
        ({"threshold": NAN}, "parameters.threshold"),
        ({"return_probabilities": 1}, "parameters.return_probabilities"),
        ({"k": "3"}, "parameters.k"),
        ({"k": None}, "parameters.k"),
        ({"stop": "."}, "parameters.stop"),
        ({"stop": ["a", 1]}, "parameters.stop[1]"),
        ({"t": "Infinity"}, "parameters.t"),
        ([], "parameters"),
    ],
)
def test_a_wrong_parameter_is_named(given: Any, path: str) -> None:
    """A mistyped threshold would be ignored, and the answers taken for what was asked."""
    schema = compiled(column("a", "double"), params=PARAMS)
    with pytest.raises(ValidationFailed) as raised:
        schema.parameters(given, binary=True, classifier=True)
    assert [each.path for each in raised.value.fields] == [path]


def test_our_parameters_belong_to_classifiers() -> None:
    """A threshold for a regressor would be ignored silently."""
    for ours, binary, classifier in (
        ({"threshold": 0.5}, False, True),
        ({"threshold": 0.5}, False, False),
        ({"return_probabilities": True}, False, False),
    ):
        with pytest.raises(ValidationFailed, match="not possible"):
            NUMERIC.parameters(ours, binary=binary, classifier=classifier)
    assert NUMERIC.parameters({"return_probabilities": False}, binary=False, classifier=True) == Parameters(
        None, False, {}
    )


def test_equal_params_make_equal_variants() -> None:
    """Requests that say the same would never share a batch."""
    properties = {name: {"type": "long", "required": True} for name in "xy"}
    params = [{"name": "o", "type": "object", "properties": properties, "default": {"x": 1, "y": 2}, "shape": None}]
    schema = compiled(column("a", "double"), params=params)
    given = schema.parameters({"o": {"y": 2.0, "x": 1}}, binary=False, classifier=False)
    assert schema.variant({}, given.params) == schema.variant({}, {})


def test_params_too_large_for_a_batchs_key_are_refused() -> None:
    """The frame to the worker has room for 64 KiB: the request would end in a 500."""
    schema = compiled(column("a", "double"), params=PARAMS)
    large = schema.parameters({"stop": ["x" * MOST_VARIANT]}, binary=False, classifier=False)
    with pytest.raises(ValidationFailed, match="parameters"):
        schema.variant({}, large.params)


ANY_TYPE = st.sampled_from(["double", "float", "long", "integer", "boolean", "string", "datetime", "binary", "any"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from(["NaN", "Infinity"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from("ab"), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(types=st.lists(ANY_TYPE, min_size=1, max_size=3), required=st.booleans(), input_data=ANYTHING)
def test_nothing_but_rows_or_a_refusal_comes_out(types: list[str], required: bool, input_data: Any) -> None:
    """Somebody's strange input would be a 500, and look like our fault."""
    inputs = [column(name, each, required=required) for name, each in zip("abc", types, strict=False)]
    shaped = [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1, 2]}}]
    for signature in ({"inputs": [*inputs, column("d", "long")]}, {"inputs": shaped}, None):
        schema = InputSchema.compile(signature)
        for given_data in (
            input_data,
            {"a": input_data, "b": input_data, "c": input_data, "d": 1, "inputs": input_data},
        ):
            try:
                rows = schema.encode(given_data, 5)
            except ValidationFailed as error:
                orjson.dumps(error.body())
            else:
                assert 1 <= rows.size <= 5


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "long": st.integers(-(2**53), 2**53) | st.just(4.0),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "boolean": st.booleans(),
    "string": st.text(max_size=5),
}


@st.composite
def signatures_with_records(draw: st.DrawFn) -> tuple[InputSchema, list[dict[str, Any]]]:
    """A schema of columns, and records that it allows, with gaps where it allows them."""
    inputs = [
        column(str(at), draw(st.sampled_from(sorted(VALUES))), required=draw(st.booleans()))
        for at in range(draw(st.integers(1, 5)))
    ]
    values = {each["name"]: VALUES[each["type"]] | (st.nothing() if each["required"] else st.none()) for each in inputs}
    return compiled(*inputs), draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=4))


@given(signatures_with_records())
def test_a_batch_is_its_records(drawn: tuple[InputSchema, list[dict[str, Any]]]) -> None:
    """A row would be answered differently for being sent together with others."""
    schema, records = drawn
    batch = {name: [each[name] for each in records] for name in records[0]}
    together = schema.encode(batch, 10)
    alone = [schema.encode(each, 10) for each in records]
    assert together.size == len(records)
    if schema.encoding is Encoding.FLOATS:
        np.testing.assert_array_equal(numbers(together), [number for each in alone for number in numbers(each)])
    else:
        assert cells(together) == [cells(each)[0] for each in alone]


@given(signatures_with_records())
def test_the_fast_way_and_the_careful_one_agree(drawn: tuple[InputSchema, list[dict[str, Any]]]) -> None:
    """What a model is given would depend on which way a request happens to take."""
    schema, records = drawn
    careful = InputSchema.compile({"inputs": [{**vars(each)} for each in schema.columns]})
    careful._fields._quick = False  # type: ignore[attr-defined]
    for record in records:
        quick, slow = schema.encode(record, 1), careful.encode(record, 1)
        if schema.encoding is Encoding.FLOATS:
            np.testing.assert_array_equal(numbers(quick), numbers(slow))
        else:
            assert cells(quick) == cells(slow)
