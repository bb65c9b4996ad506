"""Parquet files whose rows are pictures: paths, or bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from samx.datasets.pictures import leaf, parquet_file
from samx.datasets.stores import DATASET, Store, store_errors
from samx.errors import InputError, UsageError
from samx.extras import require

TABLE = ".parquet"
GROUP_CAP_BYTES = 512 << 20  # of one column; a worker unpacks a row group at a time
ROWS_AT_ONCE = 1024  # of names and prompts
BYTES_FIELD = "bytes"  # of a structure, as Hugging Face's data sets keep pictures


class Cell(NamedTuple):
    """A picture's row."""

    name: str
    uri: str
    column: str | None
    group: int | None
    place: int | None
    prompts: Any


@dataclass(frozen=True)
class Table:
    """Hold which columns of a Parquet file are read; `holds_bytes` of the column of pictures."""

    store: Store
    name: str
    column: str
    names: str | None
    prompts: str | None
    holds_bytes: bool

    def cells(self) -> Iterator[Cell]:
        """Yield the rows, without the pictures' bytes.

        Raises: InputError for a damaged file, and for a row without a name.
        """
        wanted = [column for column in (None if self.holds_bytes else self.column, self.names, self.prompts) if column]
        with store_errors(f"table '{self.store.uri}'"), self.store.fs.open(self.store.root, "rb") as opened:
            file = parquet_file(opened)
            numbers = count()
            for group in range(file.num_row_groups):
                places = count()
                for batch in _batches(file, group, wanted):
                    for row in batch:
                        yield self._cell(row, group, next(places), next(numbers))

    def _cell(self, row: dict[str, Any], group: int, place: int, number: int) -> Cell:
        own_name, asked = f"{self.name}#{number}", row.get(self.prompts or "")
        given = row.get(self.names or "", own_name)
        if given is None or not str(given).strip():
            raise InputError(f"row {number} of '{self.store.uri}' has no name", found=f"nothing in '{self.names}'")
        path = row.get(self.column)
        if self.holds_bytes or not path:  # a row without a path has no bytes either, which its reader says
            return Cell(str(given), self.store.uri, self.column, group, place, asked)
        name = str(given) if self.names or not path.strip() else path
        return Cell(name, self._uri(path), None, None, None, asked)

    def _uri(self, path: str) -> str:
        """Return where a path leads: as it is, or from the folder of the table on."""
        if "://" in path:
            return path
        folder = self.store.root.rpartition("/")[0]
        return str(self.store.fs.unstrip_protocol(path if path.startswith("/") else f"{folder}/{path}"))


def _batches(file: Any, group: int, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    if not columns:
        yield [{}] * file.metadata.row_group(group).num_rows
        return
    for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
        parts = [leaf(_table_of(batch), column).to_pylist() for column in columns]
        yield [dict(zip(columns, values, strict=True)) for values in zip(*parts, strict=True)]


def _table_of(batch: Any) -> Any:
    return require("pyarrow", DATASET, "reading Parquet").Table.from_batches([batch])


def open_tables(store: Store, column: str, names: str | None, prompts: str | None) -> list[Table]:
    """Open a file, all files of a folder at any depth, or those of a pattern, and find their columns.

    Raises: InputError for no or a damaged file, and for pictures of one row group that are too many for memory;
    UsageError for columns that are not there or hold something else; MissingExtraError.
    """
    with store_errors(f"'{store.uri}'"):
        is_folder = store.fs.isdir(store.root)
        files = [store.at(name).root for name in store.files() if is_table(name)] if is_folder else _matching(store)
    if not files:
        raise InputError(f"there is no Parquet file at '{store.uri}'")
    folder = store.root.rstrip("/") if is_folder else files[0].rpartition("/")[0]
    of = partial(_opened, column=column, names=names, prompts=prompts)
    tables = [of(Store(store.fs, file), file.removeprefix(folder).lstrip("/")) for file in files]
    if len({(table.column, table.holds_bytes) for table in tables}) > 1:
        raise UsageError(f"column '{column}' holds bytes in some files of '{store.uri}' and paths in others")
    return tables


def is_table(name: str) -> bool:
    """Whether a name is that of a Parquet file, or of a folder of them."""
    return name.rstrip("/").lower().endswith(TABLE)


def _matching(store: Store) -> list[str]:
    """Return what a pattern names; a bracket in it may also be of a name, as in 'photos[1]/*.parquet'."""
    if "*" not in store.root:
        return [store.root]
    return sorted(store.fs.glob(store.root) or store.fs.glob(store.root.replace("[", "[[]")))


def _opened(store: Store, name: str, column: str, names: str | None, prompts: str | None) -> Table:
    with store_errors(f"table '{store.uri}'"), store.fs.open(store.root, "rb") as opened:
        file = parquet_file(opened)
        schema, metadata = file.schema_arrow, file.metadata
    for flag, wanted in (("--column", column), ("--names", names), ("--prompts", prompts)):
        if wanted is not None:
            _check_column(schema, wanted, flag, store)
    column, holds_bytes = _kind(schema, column, store)
    if holds_bytes:
        _check_groups(metadata, column, store)
    return Table(store, name, column, names, prompts, holds_bytes)


def _check_column(schema: Any, column: str, flag: str, store: Store) -> None:
    if column not in schema.names and column.rpartition(".")[0] not in schema.names:
        known = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UsageError(f"table '{store.uri}' has no column '{column}'", expected=known, fix=f"Name it: {flag}.")


def _kind(schema: Any, column: str, store: Store) -> tuple[str, bool]:
    """Return the column that is read, and whether it holds bytes or paths."""
    types = require("pyarrow.types", DATASET, "reading Parquet")
    outer, _, inner = ("", "", column) if column in schema.names else column.rpartition(".")
    kind = schema.field(inner).type if not outer else _field(schema.field(outer).type, inner)
    if kind is not None and types.is_struct(kind) and _field(kind, BYTES_FIELD) is not None:
        column, kind = f"{column}.{BYTES_FIELD}", _field(kind, BYTES_FIELD)
    if kind is not None and (types.is_binary(kind) or types.is_large_binary(kind)):
        return column, True
    if kind is not None and (types.is_string(kind) or types.is_large_string(kind)):
        return column, False
    expected = "paths (string), picture files (binary), or a structure with such a field 'bytes'"
    raise UsageError(f"column '{column}' of '{store.uri}' holds no pictures", found=kind, expected=expected)


def _field(kind: Any, name: str) -> Any:
    types = require("pyarrow.types", DATASET, "reading Parquet")
    place = kind.get_field_index(name) if types.is_struct(kind) else -1
    return None if place < 0 else kind.field(place).type


def _check_groups(metadata: Any, column: str, store: Store) -> None:
    """Refuse row groups that would not fit in memory."""
    for group in range(metadata.num_row_groups):
        parts = metadata.row_group(group)
        columns = map(parts.column, range(parts.num_columns))
        size = sum(part.total_uncompressed_size for part in columns if part.path_in_schema == column)
        if size > GROUP_CAP_BYTES:
            raise InputError(
                f"row group {group} of '{store.uri}' is too large", found=f"{size >> 20} MiB of '{column}'",
                expected=f"at most {GROUP_CAP_BYTES >> 20} MiB",
                fix="Write the table again with fewer rows in a group, such as row_group_size=100.",
            )  # fmt: skip
