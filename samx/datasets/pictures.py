"""One picture of a data set, the row that is written of it, and how its bytes are read."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from samx.artifacts.strict_json import Document
from samx.datasets.stores import DATASET, Store, store_errors
from samx.errors import ImageError
from samx.extras import require

Row = dict[str, Any]
Rows = Generator[Row, None, None]
Read = Callable[["Picture"], bytes]

PICTURE_CAP_BYTES = 1 << 30  # 100 megapixels of 16-bit RGB are 600 MB unpacked, the most that a file of them takes
GROUPS_HELD = 2  # neighbours in a table are read by workers side by side, at times on both sides of a border


@dataclass(frozen=True)
class Picture(Document):
    """Name a picture, and say where its bytes are: in a file, or in a row of a column of a Parquet file.

    group: number of the row group in the file, place: of the row in it; prompts: in the words of parse_object().
    """

    name: str
    uri: str
    column: str | None = None
    group: int | None = None
    place: int | None = None
    prompts: tuple[str, ...] | None = None


def key_of(name: str) -> bytes:
    """Return what stands for a name where millions are kept in memory."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def failed(picture: Picture, error: str) -> Row:
    """Return the row of a picture that has no answer."""
    return row_of(picture, error=error)


def row_of(
    picture: Picture, width: int | None = None, height: int | None = None, masks: list[Row] | None = None,
    notes: list[str] | None = None, error: str | None = None,
) -> Row:  # fmt: skip
    """Return a row as it is written."""
    return {"picture": picture.name, "uri": picture.uri, "width": width, "height": height, "masks": masks or [],
            "notes": notes or [], "error": error}  # fmt: skip


class Reader:
    """Read pictures; of a table's row groups the last ones are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._group = lru_cache(maxsize=GROUPS_HELD)(_column_of_group)

    def __call__(self, picture: Picture) -> bytes:
        """Return a picture's bytes.

        Raises: ImageError.
        """
        if picture.column is None:
            return Store.of(picture.uri).read(PICTURE_CAP_BYTES, f"picture '{picture.name}'", ImageError)
        with self._lock, store_errors(f"picture '{picture.name}'", ImageError):
            cell = self._group(picture.uri, picture.group, picture.column)[picture.place].as_py()
        if not cell:
            raise ImageError(f"picture '{picture.name}' has no bytes", found="an empty cell")
        data: bytes = cell
        return data


def _column_of_group(uri: str, group: int, column: str) -> Any:
    store = Store.of(uri)
    with store.fs.open(store.root, "rb") as file:
        table = parquet_file(file).read_row_group(group, columns=[column], use_threads=False)
    return leaf(table, column)


def parquet_file(opened: Any) -> Any:
    """Open a Parquet file that is read by this thread alone.

    Arrow's own threads would let go of Python's files while the interpreter ends, which aborts the process.
    """
    return require("pyarrow.parquet", DATASET, "reading Parquet").ParquetFile(opened, pre_buffer=False)


def leaf(table: Any, column: str) -> Any:
    """Return a column, or with a dot in its name the field of one that is a structure."""
    if column in table.column_names:
        return table[column].combine_chunks()
    compute = require("pyarrow.compute", DATASET, "reading Parquet")
    outer, _, inner = column.rpartition(".")
    return compute.struct_field(table[outer].combine_chunks(), inner)
