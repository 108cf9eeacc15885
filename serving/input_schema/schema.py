"""InputSchema: the way in for everybody who has rows, parameters or a description to ask for.

What is accepted follows MLflow's own enforcement (`mlflow.models.utils._enforce_schema`) of the DataFrame or array that
a worker builds from our rows, with these differences.

Refused here, though MLflow accepts it:
- columns that the signature does not name (MLflow warns and drops them: a typing error in an optional name is lost);
- null or NaN in a required column (MLflow does not look), and cells of another type in a string column;
- long beyond 2**53 where all columns are numbers: rows are float64 then, and a digit would be lost silently. In a
  signature with other columns too, which travels as JSON, long has all of its 64 bits;
- float beyond what 32 bits hold, no rows, and parameters that are unknown.

Accepted here, though MLflow's types alone would refuse it, because JSON has fewer types than a signature:
- 1.0 for an integer and 1 for a double. A double takes the nearest number to what is written, 0.1 as 2**53 + 1;
- "Infinity" and "-Infinity" for numbers, "NaN" where they may be missing (in a tensor of floats always); where rows
  travel as JSON the infinite ones stay these texts;
- times as text in ISO 8601, which travel as UTC without a zone, and bytes as base64 text;
- null in an optional column of integers, which MLflow's DataFrame cannot hold.
"""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from serving.contracts import Encoding, Parameters, Rows
from serving.input_schema.column import Column, compile_columns, encoding_of
from serving.input_schema.columns import ColumnsInput
from serving.input_schema.free import FreeInput
from serving.input_schema.parameters import ParameterReader
from serving.input_schema.problems import invalid
from serving.input_schema.spec import ColumnSpec, FieldDescription, TensorSpec, signature_part, tensor_spec
from serving.input_schema.tensor import UNNAMED, TensorInput

MOST_VARIANT = 48 * 1024
"""Bytes. A variant is part of the key of a batch, which has 64 KiB in a frame."""


class _Input(Protocol):
    def encode(self, given: Any, max_rows: int) -> tuple[int, bytes]: ...


class InputSchema:
    """What the requests of one version may hold, compiled once. See the module for how it differs from MLflow."""

    columns: list[ColumnSpec]  # in the signature's order; empty for a tensor, and without a signature
    tensor: TensorSpec | None
    encoding: Encoding  # of the rows

    def __init__(
        self, fields: _Input, encoding: Encoding, parameters: ParameterReader, described: list[FieldDescription]
    ) -> None:
        """See `compile`."""
        self._fields = fields
        self._parameters = parameters
        self._described = described
        self._free = isinstance(fields, FreeInput)
        self.columns = []
        self.tensor = None
        self.encoding = encoding
        self._usual = self._variant({}, {})  # of every request without parameters

    @classmethod
    def compile(cls, signature: dict[str, Any] | None) -> InputSchema:
        """From a signature: `{"inputs", "outputs", "params"}`, each a list or its JSON text. None: none was logged.

        Raises:
            SignatureNotSupported: requests could not be validated against it; says why.
        """
        parameters = ParameterReader(signature_part(signature, "params"))
        inputs = signature_part(signature, "inputs")
        if inputs is None:
            return cls(FreeInput(), Encoding.JSON, parameters, [])
        spec = tensor_spec(inputs)
        if spec is not None:
            return cls._of_tensor(spec, parameters)
        encoding = encoding_of(inputs)
        columns = compile_columns(inputs, encoding)
        schema = cls(ColumnsInput(columns, encoding), encoding, parameters, list(map(_described, columns)))
        schema.columns = [each.spec for each in columns]
        return schema

    @classmethod
    def _of_tensor(cls, spec: TensorSpec, parameters: ParameterReader) -> InputSchema:
        fields = TensorInput(spec)
        name = spec.name or UNNAMED
        described = FieldDescription(name, fields.type.datatype, [-1, *spec.dims], required=True)
        schema = cls(fields, fields.encoding, parameters, [described])
        schema.tensor = spec
        return schema

    def encode(self, input_data: Any, max_rows: int) -> Rows:
        """The rows of a request, 1 to `max_rows`. Their variant is that of a request without parameters.

        Raises:
            ValidationFailed: with every field that is wrong, a hundred at most.
        """
        size, body = self._fields.encode(input_data, max_rows)
        variant = self.variant(input_data, self._parameters.defaults) if self._free else self._usual
        return Rows(size, self.encoding, body, variant)

    def parameters(self, given: dict[str, Any], *, binary: bool, classifier: bool) -> Parameters:
        """The `parameters` of a request, those of the signature that were left out by their defaults.

        `binary`: the model is a classifier of two classes that gives probabilities.

        Raises:
            ValidationFailed: unknown ones (naming the known), wrong types, ours where the model is of another kind.
        """
        return self._parameters.read(given, binary=binary, classifier=classifier)

    def variant(self, input_data: dict[str, Any], params: dict[str, Any]) -> bytes:
        """What must be equal within a batch, as canonical JSON: the params, and the columns where no signature fixes them.

        Raises:
            ValidationFailed: it is too large to travel.
        """
        if not self._free and params is self._parameters.defaults:
            return self._usual
        return self._variant(input_data, params)

    def _variant(self, input_data: dict[str, Any], params: dict[str, Any]) -> bytes:
        parts: dict[str, Any] = {}
        if self._free:
            parts["columns"] = list(input_data)
        if self._parameters.defaults:
            parts["params"] = self._parameters.defaults | params
        if not parts:
            return b""
        try:
            variant = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
        except TypeError:
            raise invalid("parameters", "a value that cannot travel", "integers of 64 bits") from None
        if len(variant) > MOST_VARIANT:
            path = (
                "input_data" if self._free and len(orjson.dumps(parts["columns"])) > len(variant) // 2 else "parameters"
            )
            raise invalid(path, f"names or values of {len(variant)} bytes", f"at most {MOST_VARIANT} bytes")
        return variant

    def describe(self) -> list[FieldDescription]:
        """Its inputs by name, datatype of the Open Inference Protocol, and shape. Empty without a signature."""
        return list(self._described)


def _described(column: Column) -> FieldDescription:
    return FieldDescription(column.spec.name, column.type.datatype, [-1], column.spec.required)
