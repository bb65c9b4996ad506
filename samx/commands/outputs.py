"""Writes what was segmented: every file whole or not at all, no file that is there unless it may be replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from samx.artifacts.commit import write_file
from samx.artifacts.folder import write_folder
from samx.errors import UsageError, WriteError
from samx.processing.images import MAX_PICTURE_PX, RgbArray, check_free
from samx.processing.rasters import png_bytes
from samx.processing.results import (
    FOLDER,
    KINDS,
    NAME_PATTERN,
    OF_RUNS,
    OVERLAY,
    Segments,
    check_kind,
    kind_of,
    pictures,
)

OTHER_NAME = "Choose another name, or remove it yourself."


def check_apart(read: Sequence[Path], written: Sequence[Path]) -> None:
    """Check that nothing is written over what is read, or over each other. Of a folder its own files are read.

    Raises: UsageError.
    """
    files = [one for path in read for one in (path.iterdir() if path.is_dir() else [path])]
    named, taken = [path.resolve() for path in written], {path.resolve() for path in files}
    if clash := next((path for path in named if path in taken or named.count(path) > 1), None):
        raise UsageError("one file is named twice", found=clash, fix="Give each output a name of its own.")


def check_outputs(outputs: Sequence[Path], overwrite: bool, read: Sequence[Path] = ()) -> None:
    """Refuse, before the work, what could not be written after it; `read` is what the work needs.

    Raises: UsageError for an unknown ending, and a file named twice; WriteError for what is there; MissingExtraError.
    """
    check_apart(read, outputs)
    for path in outputs:
        kind = kind_of(path)
        check_kind(kind)
        check_place(path)
        if kind == FOLDER:
            _check_folder(path, overwrite)
        else:
            check_file(path, overwrite)


def check_place(path: Path) -> None:
    """Refuse a file or folder that lies where nothing can be written.

    Raises: WriteError.
    """
    if not path.parent.is_dir():
        raise WriteError(f"cannot write {path}", found=f"no folder '{path.parent}'", fix="Make it first.")
    if not os.access(path.parent, os.W_OK):
        fix = "Choose a place that can be written."
        raise WriteError(f"cannot write {path}", found=f"no permission in '{path.parent}'", fix=fix)


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse a file that is there, unless it may be replaced, and the name of a folder.

    Raises: WriteError.
    """
    if path.is_dir():
        raise WriteError(f"cannot write {path}", found="a folder of that name", fix="Choose another name.")
    check_free(path, overwrite)


def check_holds(outputs: Sequence[Path], picture: RgbArray) -> None:
    """Refuse files that would hold every pixel of a picture that is looked at tile by tile because it is too large.

    Raises: UsageError.
    """
    height, width, _ = picture.shape
    for path in outputs:
        if height * width > MAX_PICTURE_PX and kind_of(path) not in OF_RUNS:
            raise UsageError(
                f"'{path}' holds every pixel, of a picture too large for that", found=f"{width} x {height} px",
                expected=" or ".join(OF_RUNS),
            )  # fmt: skip


def _check_folder(path: Path, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it may be replaced and holds nothing but masks."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise WriteError(f"{path} exists already", fix="Choose another name, or ask for overwriting: --force.")
    if path.is_symlink() or not path.is_dir():
        raise WriteError(f"{path} is not replaced", found="no folder", fix=OTHER_NAME)
    others = sorted(entry.name for entry in path.iterdir() if not entry.match(NAME_PATTERN) or not entry.is_file())
    if others:
        raise WriteError(
            f"{path} is not replaced, because it holds more than masks", found=", ".join(others[:3]),
            fix=OTHER_NAME,
        )  # fmt: skip


def write_outputs(outputs: Sequence[Path], found: Segments, draw: Callable[[], RgbArray], overwrite: bool) -> None:
    """Write masks to files of the kinds that their endings say; `draw` makes the picture with masks on it.

    Raises: WriteError.
    """
    for path in outputs:
        kind = kind_of(path)
        if kind == FOLDER:
            write_folder(path, pictures(found), partial(_check_folder, path, overwrite))
            continue
        data = png_bytes(draw()) if kind == OVERLAY else KINDS[kind].write(found)
        check_free(path, overwrite)
        write_file(path, data)
