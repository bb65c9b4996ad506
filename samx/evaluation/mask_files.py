"""Masks as PNG files: of NAME.jpg one mask in NAME.png or NAME.mask.png, several in a folder NAME, or a label map.

Those are the files that `samx segment` writes, and what most tools that label pictures export.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.errors import InputError
from samx.evaluation.labels import Labelled, Labels, LeftOut, Truth
from samx.processing.images import read_values
from samx.processing.rle import Rle

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
LABEL_MAP, MASK = ".labels.png", ".mask.png"
OBJECT = "object"
EXPECTED = f"beside NAME.jpg: NAME.png or NAME{MASK} (white on black), NAME{LABEL_MAP} (numbers), or a folder NAME"


def mask_labels(folder: Path, pictures: Path) -> Labels:
    """Find the masks in a folder, and their pictures by name.

    Raises: InputError where there are none, or a picture has masks of two kinds.
    """
    together = os.path.samefile(folder, pictures)
    found = []
    left_out = LeftOut()
    for picture in _pictures(pictures, together):
        masks = [path for path in _candidates(folder, picture) if path.exists()]
        if len(masks) > 1:
            raise InputError(
                f"picture '{picture}' has masks in two places", found=" and ".join(map(str, masks)), expected="one"
            )
        left_out["no_label"] += not masks
        found += [Labelled(picture, _reader(masks[0]))] if masks else []
    if not found:
        raise InputError(f"no masks of pictures of '{pictures}' lie in '{folder}'", expected=EXPECTED)
    return Labels("png", folder, found, left_out)


def _pictures(folder: Path, with_masks: bool) -> list[Path]:
    """List a folder's pictures; where masks lie among them, not those."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not with_masks:
        return files
    others = {path.stem for path in files if path.suffix.lower() != ".png"}
    return [
        path for path in files if not path.name.endswith((LABEL_MAP, MASK))
        and (path.suffix.lower() != ".png" or path.stem not in others)
    ]  # fmt: skip


def _candidates(folder: Path, picture: Path) -> list[Path]:
    """List where a picture's masks may lie."""
    names = (f"{picture.stem}{LABEL_MAP}", f"{picture.stem}{MASK}", f"{picture.stem}.png", picture.stem)
    return [path for name in names if (path := folder / name) != picture]


def _reader(path: Path) -> Callable[[LeftOut], list[Truth]]:
    if path.is_dir():
        return partial(_of_folder, path)
    return partial(_of_label_map if path.name.endswith(LABEL_MAP) else _of_mask, path)


def _of_folder(folder: Path, left_out: LeftOut) -> list[Truth]:
    files = sorted(folder.glob("*.png"))
    left_out["no_label"] += not files
    return [truth for file in files for truth in _of_mask(file, left_out)]


def _of_mask(file: Path, left_out: LeftOut) -> list[Truth]:
    """Read one object, white on black or of any one value but 0.

    Raises: InputError for more values: nobody knows whether they are soft edges or several objects.
    """
    values = read_values(file)
    plane = values if values.ndim == 2 else values[..., : 3 if values.shape[-1] > 2 else 1].max(axis=-1)
    levels = np.unique(plane)
    if len(levels[levels != 0]) > 1:
        raise InputError(
            f"mask '{file}' has more than two values", found=f"{len(levels)}", expected="0, and one other",
            fix=f"If each is an object, name it {file.stem.removesuffix('.mask')}{LABEL_MAP}; if they are soft edges, "
            "save the mask without them.",
        )  # fmt: skip
    return _counted([(file.name, plane != 0)], left_out)


def _of_label_map(file: Path, left_out: LeftOut) -> list[Truth]:
    """Read an object of each value but 0.

    Raises: InputError for a picture in colours.
    """
    values = read_values(file)
    if values.ndim != 2:
        expected = "one channel of numbers, or a palette"
        raise InputError(f"label map '{file}' has colours", found=f"{values.shape[-1]} channels", expected=expected)
    numbers = [number for number in np.unique(values) if number]
    return _counted([(f"{file.name} {number}", values == number) for number in numbers] or [("", values)], left_out)


def _counted(masks: list[tuple[str, NDArray[Any]]], left_out: LeftOut) -> list[Truth]:
    found = [Truth(name, OBJECT, Rle.of(mask)) for name, mask in masks if mask.any()]
    left_out["empty"] += len(masks) - len(found)
    return found
