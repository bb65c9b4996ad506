"""The files that are written: Parquet, a row a picture, each whole or not there."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from samx.datasets.pictures import Row, key_of, parquet_file
from samx.datasets.record import RECORD, Record
from samx.datasets.stores import DATASET, Store, store_errors
from samx.errors import ArtifactError
from samx.extras import require

PREFIX, ENDING = "part-", ".parquet"
OWNER = b"samx.request"  # in a file's metadata: the key of the record that it belongs to
MAYBE = "Remove that file to have its pictures done again."


@cache
def schema() -> Any:
    """Return the columns; a mask has the fields of an annotation of COCO's."""
    pa = require("pyarrow", DATASET, "writing Parquet")
    runs = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    mask = pa.struct([
        ("segmentation", runs), ("bbox", pa.list_(pa.int32())), ("area", pa.int64()), ("predicted_iou", pa.float32()),
        ("stability_score", pa.float32()), ("prompt", pa.int32()), ("mask", pa.int32()),
    ])  # fmt: skip
    return pa.schema([
        ("picture", pa.string()), ("uri", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
        ("masks", pa.list_(mask)), ("notes", pa.list_(pa.string())), ("error", pa.string()),
    ])  # fmt: skip


def table_of(rows: Sequence[Row]) -> Any:
    """Return rows as a table."""
    return require("pyarrow", DATASET, "writing Parquet").Table.from_pylist(list(rows), schema())


@dataclass(frozen=True)
class Parts:
    """Read and write the files of one folder of results."""

    out: Store
    record: Record

    def names(self) -> list[str]:
        """List the files."""
        return [name for name in self.out.names() if name.startswith(PREFIX) and name.endswith(ENDING)]

    def done(self) -> set[bytes]:
        """Return what stands for each picture that has a row.

        Raises: ArtifactError for a file that is damaged or belongs to another request, and for two rows of a picture.
        """
        found: set[bytes] = set()
        for name in self.names():
            for picture in self._read(name, ["picture"])["picture"].to_pylist():
                if key_of(picture) in found:
                    what = f"'{self.out.uri}' holds a picture twice"
                    raise ArtifactError(what, found=f"'{picture}', again in {name}", fix=MAYBE)
                found.add(key_of(picture))
        return found

    def begin(self) -> None:
        """Say what the folder belongs to, where nothing does yet.

        Raises: WriteError.
        """
        if RECORD not in self.out.names():
            self.out.at(RECORD).write(self.record.to_bytes())

    def write(self, rows: Sequence[Row]) -> None:
        """Write a file; the same pictures give the same name, so that doing them twice leaves them there once.

        Raises: WriteError.
        """
        names = "\n".join(row["picture"] for row in rows)
        self._put(f"{PREFIX}{hashlib.sha256(names.encode()).hexdigest()[:20]}{ENDING}", table_of(rows))

    def drop_failures(self) -> int:
        """Remove the rows of pictures that have none but an error; return how many.

        Raises: WriteError; as done().
        """
        dropped = 0
        for name in self.names():
            failures = self._read(name, ["error"])["error"].is_valid()
            bad = sum(failures.to_pylist())
            if bad == len(failures):
                self.out.at(name).remove()
            elif bad:
                table = self._read(name, None)
                self._put(name, table.filter(table["error"].is_null()))
            dropped += bad
        return dropped

    def totals(self) -> dict[str, int]:
        """Count what the files hold: pictures, errors, notes and masks."""
        found = {"pictures": 0, "errors": 0, "noted": 0, "masks": 0}
        compute = require("pyarrow.compute", DATASET, "reading Parquet")
        for name in self.names():
            table = self._read(name, ["error", "notes", "masks.list.element.area"])
            masks, notes = (compute.list_value_length(table[column]) for column in ("masks", "notes"))
            found["pictures"] += len(table)
            found["errors"] += len(table) - table["error"].null_count
            found["noted"] += sum(map(bool, notes.to_pylist()))
            found["masks"] += sum(masks.to_pylist())
        return found

    def _put(self, name: str, table: Any) -> None:
        buffer = io.BytesIO()
        owned = table.replace_schema_metadata({OWNER: self.record.key.encode()})
        require("pyarrow.parquet", DATASET, "writing Parquet").write_table(owned, buffer, compression="zstd")
        self.out.at(name).write(buffer.getvalue())

    def _read(self, name: str, columns: list[str] | None) -> Any:
        store = self.out.at(name)
        with store_errors(f"'{store.uri}'", ArtifactError), store.fs.open(store.root, "rb") as opened:
            table = parquet_file(opened).read(columns=columns, use_threads=False)
        if (table.schema.metadata or {}).get(OWNER) != self.record.key.encode():
            raise ArtifactError(f"'{store.uri}' belongs to another request", fix=MAYBE)
        return table
