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


def check_outputs(outputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse, before the work, what could not be written after it.

    Raises: UsageError for an unknown ending, and a file named twice; WriteError for what is there; MissingExtraError.
    """
    if len({Path(os.path.abspath(path)) for path in outputs}) < len(outputs):
        raise UsageError("a file is to be written twice", found=", ".join(map(str, outputs)))
    for path in outputs:
        kind = kind_of(path)
        check_kind(kind)
        if not path.parent.is_dir():
            raise WriteError(f"cannot write {path}", found=f"no folder '{path.parent}'", fix="Make it first.")
        if kind == FOLDER:
            _check_folder(path, overwrite)
        elif path.is_dir():
            raise WriteError(f"cannot write {path}", found="a folder of that name", fix="Choose another name.")
        else:
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
