"""Where the pictures of a data set are: in a folder, or in the rows of Parquet files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from samx.artifacts.strict_json import parse
from samx.datasets.pictures import Picture, key_of
from samx.datasets.stores import Store
from samx.datasets.tables import TABLE, Table, is_table, open_tables
from samx.errors import ArtifactError, InputError, UsageError
from samx.files import read_file
from samx.progress import Progress

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
PROMPTS_FORM = 'JSON such as {"a.jpg": [[x0, y0, x1, y1], ...], ...}'
PROMPTS_CAP_BYTES = 1 << 30  # a few boxes for each of millions of pictures
TOLD_EVERY = 100_000  # pictures that are listed


class Source(Protocol):
    """Tell pictures in an order that is the same each time; what is asked of them beside the settings is in `facts`."""

    @property
    def store(self) -> Store:
        """Where they are."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What of the request decides which pictures and prompts there are."""

    def pictures(self) -> Iterator[Picture]:
        """Yield them."""


def open_source(url: str, column: str | None, names: str | None, prompts: str | None) -> Source:
    """Open a folder, or Parquet files: a file, a folder whose name ends so, or a pattern.

    column: of paths or bytes; names: the column of names; prompts: a column of a table, a JSON file beside a folder.
    Raises: UsageError for what is of tables alone; InputError for a place without pictures; as Store.of().
    """
    store = Store.of(url)
    if is_table(store.root):
        return TableSource(store, open_tables(store, column or "image", names, prompts), prompts)
    for flag, given in (("--column", column), ("--names", names)):
        if given is not None:
            raise UsageError(f"{flag} is of Parquet files", found=f"'{url}'", expected=f"a name that ends in {TABLE}")
    return FolderSource.of(store, None if prompts is None else Path(prompts))


@dataclass(frozen=True)
class FolderSource:
    """Tell the pictures in a folder, at any depth."""

    store: Store
    names: list[str]
    prompts: Mapping[str, Any] | None
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, store: Store, prompts: Path | None) -> FolderSource:
        """List a folder; `prompts` is a JSON file with an object of picture names.

        Raises: InputError, also for a file that is no JSON.
        """
        names = [name for name in store.files() if PurePosixPath(name).suffix.lower() in ENDINGS and name]
        if not names:
            fix = "For one picture there is 'samx segment'." if not store.fs.isdir(store.root) else None
            expected = f"a folder with pictures ({', '.join(ENDINGS)}), or Parquet files"
            raise InputError(f"there are no pictures in '{store.uri}'", expected=expected, fix=fix)
        if prompts is None:
            return cls(store, names, None, {})
        data = read_file(prompts, PROMPTS_CAP_BYTES, f"prompts '{prompts}'")
        found = _parsed(data, f"prompts '{prompts}'")
        if strangers := sorted(found.keys() - set(names)):
            raise InputError(
                f"prompts '{prompts}' name pictures that are not there",
                found=f"{len(strangers)}, the first '{strangers[0]}'", expected=f"names in '{store.uri}'",
            )  # fmt: skip
        return cls(store, names, found, {"prompts": hashlib.sha256(data).hexdigest()})

    def pictures(self) -> Iterator[Picture]:
        """Yield them by name."""
        for name in self.names:
            asked = None if self.prompts is None else prompt_words(self.prompts.get(name))
            yield Picture(name, self.store.at(name).uri, prompts=asked)


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    """Parse a prompts file, which somebody else's program wrote."""
    try:
        found = parse(data, what)
    except ArtifactError as error:
        raise InputError(error.what, found=error.found, expected=PROMPTS_FORM, fix="Write the file again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{what} are no object", expected=PROMPTS_FORM)
    return found


@dataclass(frozen=True)
class TableSource:
    """Tell the pictures in the rows of Parquet files."""

    store: Store
    tables: list[Table]
    prompts: str | None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What decides which pictures and prompts there are."""
        first = self.tables[0]
        return {"column": first.column, "names": first.names, **({"prompts": self.prompts} if self.prompts else {})}

    def pictures(self) -> Iterator[Picture]:
        """Yield them file by file and row by row."""
        for table in self.tables:
            for cell in table.cells():
                asked = None if self.prompts is None else prompt_words(cell.prompts)
                yield Picture(cell.name, cell.uri, cell.column, cell.group, cell.place, asked)


def survey(source: Source, progress: Progress) -> int:
    """Count the pictures.

    Raises: InputError for none, and for a name that occurs twice, or that is no text.
    """
    seen: set[bytes] = set()
    for number, picture in enumerate(source.pictures()):
        if number % TOLD_EVERY == 0:
            progress(f"Listing pictures, {number:,} so far" if number else "Listing pictures")
        try:
            key = key_of(picture.name)
        except UnicodeEncodeError as cause:
            raise InputError("the name of a picture is no text", found=ascii(picture.name), fix="Rename it.") from cause
        if key in seen:
            raise InputError(
                f"a picture is there twice in '{source.store.uri}'", found=f"'{picture.name}'",
                expected="names that differ, by which what is done is known", fix=_remedy(source),
            )  # fmt: skip
        seen.add(key)
    if not seen:
        raise InputError(f"there are no pictures in '{source.store.uri}'", found="no rows", expected="a row a picture")
    return len(seen)


def _remedy(source: Source) -> str:
    if isinstance(source, TableSource):
        return "Name a column whose values differ (--names), or put the prompts of one picture into one row."
    return "Rename one of them."


def prompt_words(cell: Any) -> tuple[str, ...] | None:
    """Return what a cell asks for in the words of parse_object(), one an object; None for an empty cell.

    A cell is a text such as 'box=1,2,3,4 point=5,6', four numbers of a box, two of a point, or a list of these.
    Nothing is refused here: what has no meaning, such as an empty text, is shown by the worker that cannot read it, and
    costs that picture alone.
    """
    if cell is None:
        return None
    if isinstance(cell, (list, tuple)) and not (cell and _are_numbers(cell)):
        return tuple(map(_one, cell))
    return (_one(cell),)


def _one(cell: Any) -> str:
    if isinstance(cell, str) and cell.strip():
        return cell
    words: Mapping[int, str] = {2: "point", 4: "box"}
    if isinstance(cell, (list, tuple)) and _are_numbers(cell) and len(cell) in words:
        return f"{words[len(cell)]}={','.join(map(repr, cell))}"
    return repr(cell)


def _are_numbers(cell: Any) -> bool:
    is_number: Callable[[Any], bool] = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)  # noqa: E731
    return all(map(is_number, cell))
