"""One column of a signature, compiled: what its cells may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.contracts import Encoding
from serving.errors import SignatureNotSupported
from serving.input_schema.cells import CellType, Read, WrongCell, anything, cell_type
from serving.input_schema.nested import array_depth, nested_read
from serving.input_schema.spec import ColumnSpec, is_required

_FLOATS = frozenset({"double", "float", "integer", "long", "boolean"})


@dataclass(frozen=True)
class Column:
    """What is known of a column's cells."""

    spec: ColumnSpec
    type: CellType
    read: Read  # a cell as it travels, null checked; raises WrongCell
    depth: int | None  # lists around one value of a single record: 0 of scalars; None: it may be anything

    def accepts(self, cells: Sequence[Any]) -> bool:
        """Whether these cells, at least one, travel as they are. False: they must be read."""
        return plain(self.type, cells, required=self.spec.required)

    @property
    def expected(self) -> str:
        """What a cell should be, in words."""
        return self.type.expected if self.spec.required else f"{self.type.expected}, or null"


def plain(kind: CellType, cells: Sequence[Any], *, required: bool) -> bool:
    """Whether cells of this type, at least one, travel as they are."""
    types = set(map(type, cells))
    if types <= kind.plain:
        return kind.in_range(cells)
    if required or not types - {type(None)} <= kind.plain:
        return False
    given = [each for each in cells if each is not None]
    return not given or kind.in_range(given)


def encoding_of(inputs: list[dict[str, Any]]) -> Encoding:
    """FLOATS where every column is a number."""
    names = [each.get("type") for each in inputs]
    return Encoding.FLOATS if all(isinstance(each, str) and each in _FLOATS for each in names) else Encoding.JSON


def compile_columns(inputs: list[dict[str, Any]], encoding: Encoding) -> list[Column]:
    """The columns, in the signature's order.

    Raises:
        SignatureNotSupported: saying which column cannot be served, and why.
    """
    if not inputs:
        raise SignatureNotSupported("its signature has no inputs")
    columns = [_compile(each, place, encoding) for place, each in enumerate(inputs)]
    names = [each.spec.name for each in columns]
    if len(set(names)) < len(names):
        raise SignatureNotSupported("two columns of its signature have the same name")
    tells = any(each.depth is not None and (each.depth > 0 or each.spec.required) for each in columns)
    if not tells and any(each.depth is None for each in columns):
        raise SignatureNotSupported(
            "only columns of type any are required by its signature, so that a list could be one value or several rows"
        )
    return columns


def _compile(spec: Mapping[str, Any], place: int, encoding: Encoding) -> Column:
    # Columns without names, as of a list or an array, go by their place.
    name, type_name = str(spec.get("name", place)), spec.get("type")
    where = f"column '{name}'"
    if not isinstance(type_name, str):
        raise SignatureNotSupported(f"{where} of its signature has no type")
    column = ColumnSpec(name, type_name, is_required(spec))
    scalar = cell_type(type_name, encoding)
    if scalar is not None:
        return Column(column, scalar, _checked(scalar.read, required=column.required), 0)
    read, expected = nested_read(spec, where)
    nested = CellType(expected, read, frozenset(), anything, "BYTES")
    depth = {"any": None, "array": array_depth(spec)}.get(type_name, 0)
    return Column(column, nested, _checked(read, required=column.required), depth)


def _checked(read: Read, *, required: bool) -> Read:
    def needed(value: Any) -> Any:
        if value is None:
            raise WrongCell("null")
        result = read(value)
        if result != result:
            raise WrongCell("NaN")
        return result

    def optional(value: Any) -> Any:
        result = None if value is None else read(value)
        return None if result != result else result

    return needed if required else optional
