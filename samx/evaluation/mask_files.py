"""Masks as PNG files: of NAME.jpg one mask in NAME.png or NAME.mask.png, several in a folder NAME, or a label map.

Those are the files that `samx segment` writes, and what most tools that label pictures export.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.errors import InputError
from samx.evaluation.labels import Labelled, Labels, LeftOut, Truth
from samx.processing.images import check_upright, read_shown, read_values
from samx.processing.rle import Rle

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
LABEL_MAP, MASK = ".labels.png", ".mask.png"
OPAQUE = 255
OBJECT = "object"
EXPECTED = f"beside NAME.jpg: NAME.png or NAME{MASK} (white on black), NAME{LABEL_MAP} (numbers), or a folder NAME"


def mask_labels(folder: Path, pictures: Path) -> Labels:
    """Find the masks in a folder, and their pictures by name.

    Raises: InputError where there are none, a picture has masks of two kinds, or two pictures have one mask.
    """
    together = os.path.samefile(folder, pictures)
    listed = _pictures(folder if together else pictures, together)
    found, left_out, named = [], LeftOut(), _by_name(folder)
    owners = {picture: picture for picture in listed}
    for picture in listed:
        mask = _mask_of(picture, named)
        if mask is None:
            left_out["no_label"] += 1
            continue
        _check_one_owner(mask, owners.setdefault(mask, picture), picture)
        found.append(Labelled(picture, mask, _reader(mask)))
    if not found:
        raise _no_masks(folder, pictures)
    return Labels("png", folder, found, left_out)


def _no_masks(folder: Path, pictures: Path) -> InputError:
    """Say where masks are looked for, and of label files in the folder that they have to be named."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json")
    fix = f"If a JSON file holds the labels, name it: --data '{files[0]}'." if files else None
    return InputError(f"no masks of pictures of '{pictures}' lie in '{folder}'", expected=EXPECTED, fix=fix)


def _pictures(folder: Path, with_masks: bool) -> list[Path]:
    """List a folder's pictures; where masks lie among them, not those."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not with_masks:
        return files
    others = {path.stem for path in files if path.suffix.lower() != ".png"}
    return [
        path for path in files if not path.name.lower().endswith((LABEL_MAP, MASK))
        and (path.suffix.lower() != ".png" or path.stem not in others)
    ]  # fmt: skip


def _by_name(folder: Path) -> Mapping[str, list[Path]]:
    """Sort a folder's content by name, endings in small letters."""
    named: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        ending = next((end for end in (LABEL_MAP, MASK, ".png") if path.name.lower().endswith(end)), "")
        named[path.name[: len(path.name) - len(ending)] + ending].append(path)
    return named


def _mask_of(picture: Path, named: Mapping[str, list[Path]]) -> Path | None:
    """Find the file or folder that holds a picture's masks.

    Raises: InputError for two.
    """
    names = (f"{picture.stem}{LABEL_MAP}", f"{picture.stem}{MASK}", f"{picture.stem}.png", picture.stem)
    masks = [path for name in names for path in named.get(name, ()) if path != picture]
    if len(masks) > 1:
        raise InputError(
            f"picture '{picture}' has masks in two places", found=" and ".join(map(str, masks)), expected="one",
            fix="Move the other away.",
        )  # fmt: skip
    return masks[0] if masks else None


def _check_one_owner(mask: Path, owner: Path, picture: Path) -> None:
    if owner != picture:
        raise InputError(
            f"mask '{mask}' may be of two pictures", found=f"'{owner}' and '{picture}'",
            expected="one picture of that name", fix="Rename one of them, and give each a mask of its own name.",
        )  # fmt: skip


def _reader(path: Path) -> Callable[[LeftOut], list[Truth]]:
    if path.is_dir():
        return partial(_of_folder, path)
    return partial(_of_label_map if path.name.lower().endswith(LABEL_MAP) else _of_mask, path)


def _of_folder(folder: Path, left_out: LeftOut) -> list[Truth]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    left_out["no_label"] += not files
    return [truth for file in files for truth in _of_mask(file, left_out)]


def _of_mask(file: Path, left_out: LeftOut) -> list[Truth]:
    """Read one object, white on black or of any one value but 0.

    Raises: InputError for more values: nobody knows whether they are soft edges or several objects; for a mask that is
    seen otherwise than it is stored.
    """
    values = _upright(file)
    plane = values if values.ndim == 2 else values[..., : 3 if values.shape[-1] > 2 else 1].max(axis=-1)
    levels = np.unique(plane)
    if len(levels[levels != 0]) > 1:
        raise InputError(
            f"mask '{file}' has more than two values", found=f"{len(levels)}", expected="0, and one other",
            fix=f"If each is an object, name it {file.stem.removesuffix('.mask')}{LABEL_MAP}; if they are soft edges, "
            "save the mask without them.",
        )  # fmt: skip
    _check_seen(file, plane != 0)
    return _counted([(file.name, plane != 0)], left_out)


def _check_seen(file: Path, inside: NDArray[Any]) -> None:
    """Refuse a mask whose palette or transparency shows another object than its numbers: which one is meant?"""
    shown = read_shown(file)
    if shown is None:
        return
    opacity = shown[..., 3]
    seen = (shown[..., :3].max(axis=-1) > 0) & (opacity > 0)
    cut_out = np.array_equal(opacity, inside * np.uint8(OPAQUE))
    if not (np.array_equal(seen, inside) and (cut_out or opacity.min() == OPAQUE)):
        cause = "transparent pixels" if opacity.min() < OPAQUE else "a palette with other colours"
        raise InputError(
            f"mask '{file}' is seen otherwise than it is stored", found=cause,
            expected="black outside of the object, and one other colour inside",
            fix="Save it in grey without transparency: 0 outside, 255 inside.",
        )  # fmt: skip


def _upright(file: Path) -> NDArray[Any]:
    """Read a mask's numbers.

    Raises: ImageError; also for a mask that is turned before it is shown.
    """
    check_upright(file, "its objects may lie as stored or as seen", "Save the mask turned, without that tag.")
    return read_values(file)


def _of_label_map(file: Path, left_out: LeftOut) -> list[Truth]:
    """Read an object of each value but 0.

    Raises: InputError for a picture in colours.
    """
    values = _upright(file)
    if values.ndim != 2:
        expected = "one channel of numbers, or a palette"
        raise InputError(f"label map '{file}' has colours", found=f"{values.shape[-1]} channels", expected=expected)
    numbers = [number for number in np.unique(values) if number]
    return _counted([(f"{file.name} {number}", values == number) for number in numbers] or [("", values)], left_out)


def _counted(masks: list[tuple[str, NDArray[Any]]], left_out: LeftOut) -> list[Truth]:
    found = [Truth(name, OBJECT, Rle.of(mask)) for name, mask in masks if mask.any()]
    left_out["empty"] += len(masks) - len(found)
    return found
