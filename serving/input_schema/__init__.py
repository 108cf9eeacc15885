"""A validator compiled once from a version's MLflow signature: what a request may hold, and how it travels."""

from serving.input_schema.json_text import read_object
from serving.input_schema.problems import Problems, kind_of, listed, shortened
from serving.input_schema.schema import InputSchema
from serving.input_schema.spec import ColumnSpec, FieldDescription, TensorSpec
from serving.input_schema.tensor import flatten, nest

__all__ = [
    "ColumnSpec",
    "FieldDescription",
    "InputSchema",
    "Problems",
    "TensorSpec",
    "flatten",
    "kind_of",
    "listed",
    "nest",
    "read_object",
    "shortened",
]
