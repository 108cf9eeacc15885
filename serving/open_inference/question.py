"""From the body of an infer request to columns and parameters as our own predict takes them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from serving.contracts import Encoding
from serving.input_schema import (
    ColumnSpec,
    InputSchema,
    Problems,
    flatten,
    kind_of,
    listed,
    nest,
    read_object,
    shortened,
)
from serving.open_inference.datatypes import DATATYPES, NUMBERS, accepted_for, first_misfit

OUTPUTS = ("predict", "probabilities")

_LONGEST_ID = 1024
_KEYS = ("id", "parameters", "inputs", "outputs")
# What clients add by themselves, about how they would like tensors encoded. Our answers are plain JSON in any case.
_IGNORED_PARAMETERS = frozenset({"content_type", "headers", "binary_data_output"})
_TEXTS_OF_JSON = frozenset({"array", "object", "map", "any"})


class InferRequest(NamedTuple):
    """One infer request."""

    id: str | None  # the client's, given back to it as it is
    input_data: dict[str, Any]  # columns, or a tensor under the key `inputs`; to be held against the signature
    parameters: dict[str, Any]
    outputs: list[str] | None  # wanted ones, of OUTPUTS; None: all


class _Tensor(NamedTuple):
    path: str
    name: str
    shape: list[int]
    datatype: str
    elements: list[Any]  # row-major


def read_infer(body: bytes, schema: InputSchema) -> InferRequest:
    """The request in `body`, for a version with this schema.

    Inputs are one tensor of shape [n] or [n, 1] for each column, or, where all columns are numbers, a single one of
    shape [n, columns] and any name. A version with a tensor signature takes a single one of its shape. Data are nested
    or flat in row-major order, null is a missing element, and values of array, object, map or any type are JSON texts.

    Raises:
        NotJson: it is not JSON; says where.
        ValidationFailed: with what is wrong, by paths such as `inputs[0].data[3]`.
    """
    given = read_object(body)
    problems = Problems()
    for name in given:
        if name not in _KEYS:
            problems.add(shortened(name), "unknown key", f"one of {', '.join(_KEYS)}")
    request_id = _id(given.get("id"), problems)
    parameters = _parameters(given.get("parameters"), problems)
    outputs = _outputs(given.get("outputs"), problems)
    tensors = _tensors(given.get("inputs"), problems)
    problems.check()
    input_data = _input_data(tensors, schema, problems)
    problems.check()
    return InferRequest(request_id, input_data, parameters, outputs)


def _id(value: Any, problems: Problems) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= _LONGEST_ID):
        return value
    was = f"a string of {len(value)} characters" if isinstance(value, str) else kind_of(value)
    problems.add("id", was, f"a string of at most {_LONGEST_ID} characters")
    return None


def _parameters(value: Any, problems: Problems) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.add("parameters", kind_of(value), "an object")
        return {}
    return {name: each for name, each in value.items() if name not in _IGNORED_PARAMETERS}


def _outputs(value: Any, problems: Problems) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        problems.add("outputs", kind_of(value), "a list of objects with a name")
        return None
    for at, each in enumerate(value):
        name = each.get("name") if isinstance(each, dict) else None
        if name not in OUTPUTS:
            was = "unknown" if isinstance(name, str) else "missing"
            problems.add(f"outputs[{at}].name", was, f"one of {', '.join(OUTPUTS)}")
        if problems.full:
            return None
    return [each["name"] for each in value] if not problems.found else None


def _tensors(value: Any, problems: Problems) -> list[_Tensor]:
    if not isinstance(value, list) or not value:
        was = "missing" if value is None else "empty" if value == [] else kind_of(value)
        problems.add("inputs", was, "a list of tensors")
        return []
    tensors: list[_Tensor] = []
    names: set[str] = set()
    for at, each in enumerate(value):
        tensor = _tensor(each, f"inputs[{at}]", problems)
        if tensor is not None and tensor.name in names:
            problems.add(f"{tensor.path}.name", "given twice", "each input once")
        elif tensor is not None:
            names.add(tensor.name)
            tensors.append(tensor)
        if problems.full:
            break
    return tensors


def _tensor(value: Any, path: str, problems: Problems) -> _Tensor | None:
    if not isinstance(value, dict):
        problems.add(path, kind_of(value), "an object with name, shape, datatype and data")
        return None
    before = len(problems.found)
    name, shape, datatype, data = (value.get(each) for each in ("name", "shape", "datatype", "data"))
    if not isinstance(name, str):
        problems.add(f"{path}.name", _was(name), "a string")
    if not _is_shape(shape):
        problems.add(f"{path}.shape", _was(shape), "a list of 1 to 8 lengths, the first that of the rows")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        was = "unknown" if isinstance(datatype, str) else _was(datatype)
        problems.add(f"{path}.datatype", was, f"one of {', '.join(sorted(DATATYPES))}")
    if not isinstance(data, list):
        problems.add(f"{path}.data", _was(data), "a list; binary tensors are not supported")
    if len(problems.found) > before:
        return None
    # All four are what they should be from here on.
    elements = _elements(str(datatype), list(shape or ()), data, f"{path}.data", problems)
    return None if elements is None else _Tensor(path, str(name), list(shape or ()), str(datatype), elements)


def _was(value: Any) -> str:
    return "missing" if value is None else kind_of(value)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(each) is int and each >= 0 for each in shape)


def _elements(datatype: str, shape: list[int], data: Any, path: str, problems: Problems) -> list[Any] | None:
    """The data in row-major order, of the count that the shape says. Raises ValidationFailed where nesting differs."""
    elements: list[Any] = data
    if any(type(each) is list for each in data):
        if len(data) != shape[0]:
            problems.add(path, f"{len(data)} rows", f"{shape[0]}, as the shape says")
            return None
        elements = flatten(data, tuple(shape[1:]), path)
    count = 1
    for each in shape:
        count *= each
    if len(elements) != count:
        problems.add(path, f"{len(elements)} elements", f"{count}, as the shape says")
        return None
    misfit = first_misfit(datatype, elements)
    if misfit is not None:
        problems.add(f"{path}[{misfit}]", kind_of(elements[misfit]), f"a value of datatype {datatype}")
        return None
    return elements


def _input_data(tensors: list[_Tensor], schema: InputSchema, problems: Problems) -> dict[str, Any]:
    first = tensors[0]
    if schema.tensor is not None:
        return _whole(tensors, list(schema.tensor.dims), schema, problems)
    named = {each.name: (each.type, described) for each, described in _columns(schema)}
    alone = len(tensors) == 1 and len(first.shape) == 2 and (first.shape[1] != 1 or first.name not in named)
    if alone and schema.columns and schema.encoding is Encoding.FLOATS:
        return _matrix(first, schema, problems)
    return {each.name: _column(each, named, problems) for each in tensors}


def _columns(schema: InputSchema) -> Iterable[tuple[ColumnSpec, str]]:
    return zip(schema.columns, (each.datatype for each in schema.describe() if schema.columns), strict=True)


def _whole(tensors: list[_Tensor], dims: list[int], schema: InputSchema, problems: Problems) -> dict[str, Any]:
    """The single tensor of a tensor signature, under whatever name."""
    first = tensors[0]
    if len(tensors) > 1:
        problems.add("inputs", f"{len(tensors)} tensors", "a single one")
    if first.shape[1:] != dims:
        problems.add(f"{first.path}.shape", str(first.shape), f"[n{''.join(f', {each}' for each in dims)}]")
        return {}
    _check_datatype(first, schema.describe()[0].datatype, problems)
    return {"inputs": nest(first.elements, tuple(dims))}


def _matrix(tensor: _Tensor, schema: InputSchema, problems: Problems) -> dict[str, Any]:
    """All columns in the signature's order."""
    columns = schema.columns
    width = len(columns)
    if tensor.shape[1] != width:
        problems.add(f"{tensor.path}.shape", str(tensor.shape), f"[n, {width}], or a tensor for each column")
        return {}
    only_boolean = all(each.type == "boolean" for each in columns)
    if tensor.datatype not in NUMBERS and not (only_boolean and tensor.datatype == "BOOL"):
        problems.add(f"{tensor.path}.datatype", tensor.datatype, f"one of {', '.join(sorted(NUMBERS))}")
        return {}
    input_data: dict[str, Any] = {}
    for at, column in enumerate(columns):
        cells = tensor.elements[at::width]
        # A matrix of numbers has no booleans; what is neither 0 nor 1 stays, for the signature to refuse.
        input_data[column.name] = list(map(_as_boolean, cells)) if column.type == "boolean" else cells
    return input_data


def _as_boolean(value: Any) -> Any:
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


def _column(tensor: _Tensor, named: dict[str, tuple[str, str]], problems: Problems) -> list[Any]:
    if tensor.shape[1:] not in ([], [1]):
        problems.add(f"{tensor.path}.shape", str(tensor.shape), "[n] or [n, 1], a tensor for each column")
        return []
    if not named:
        return tensor.elements
    if tensor.name not in named:
        known = listed(list(named))
        problems.add(f"{tensor.path}.name", f"unknown input '{shortened(tensor.name)}'", f"one of {known}")
        return []
    type_name, described = named[tensor.name]
    _check_datatype(tensor, described, problems)
    if type_name in _TEXTS_OF_JSON and tensor.datatype == "BYTES":
        return [_from_json(each, f"{tensor.path}.data[{at}]", problems) for at, each in enumerate(tensor.elements)]
    return tensor.elements


def _check_datatype(tensor: _Tensor, described: str, problems: Problems) -> None:
    accepted = accepted_for(described)
    if tensor.datatype not in accepted:
        problems.add(f"{tensor.path}.datatype", tensor.datatype, f"one of {', '.join(sorted(accepted))}")


def _from_json(text: Any, path: str, problems: Problems) -> Any:
    try:
        return None if text is None else orjson.loads(text)
    except orjson.JSONDecodeError:
        problems.add(path, "a string that is not JSON", "the value as JSON text")
        return None
