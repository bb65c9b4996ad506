"""Prompts made of true masks, as a user would give them; the same in every run, and for both sides."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from samx.errors import UsageError
from samx.extras import require
from samx.processing.postprocess import BoolArray, mask_box
from samx.processing.prompts import Prompt
from samx.processing.rle import RESULTS

POINTS = re.compile(r"points:([1-9]\d{0,2})")
EXPECTED = "box, centre or points:N"
Make = Callable[[BoolArray, str], Prompt | None]


@dataclass(frozen=True)
class Asking:
    """Say how objects are asked for: how it is written, and what makes a prompt of a mask and the object's name."""

    text: str
    make: Make

    @classmethod
    def parse(cls, text: str, seed: int) -> Asking:
        """Read box, centre or points:N.

        Raises: UsageError; MissingExtraError.
        """
        if text == "box":
            return cls(text, _box)
        found = POINTS.fullmatch(text)
        if text not in ("centre", "center") and found is None:
            raise UsageError("no such prompt", found=repr(text), expected=EXPECTED)
        _distances()
        return cls(text, partial(_points, int(found[1]) if found else 1, seed))


def _box(mask: BoolArray, name: str) -> Prompt | None:
    """Ask with the box around the mask, to the borders of its outermost pixels."""
    found = mask_box(mask)
    return None if found is None else Prompt(box=tuple(map(float, found)))  # type: ignore[arg-type]  # four of them


def _points(count: int, seed: int, mask: BoolArray, name: str) -> Prompt | None:
    """Ask with the mask's centre and other pixels of it, drawn by seed and name; None where it has too few."""
    if np.count_nonzero(mask) < count:
        return None
    first = centre(mask)
    rows, columns = np.nonzero(mask)
    others = np.flatnonzero((columns != first[0]) | (rows != first[1]))
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = others[rng.choice(len(others), count - 1, replace=False)] if count > 1 else others[:0]
    points = [first, *((int(columns[i]), int(rows[i])) for i in drawn)]
    return Prompt.of_clicks(points)


def centre(mask: BoolArray) -> tuple[int, int]:
    """Return (x, y) of the pixel that is farthest from the mask's outside; of equal ones, the first row's.

    What is beyond the picture counts as outside. Source: the evaluation of the SAM paper, section 7.1.
    """
    box = mask_box(mask)
    assert box is not None, "an empty mask has no centre"
    x0, y0, x1, y1 = box
    distances: NDArray[np.float64] = _distances()(np.pad(mask[y0:y1, x0:x1], 1))
    row, column = np.unravel_index(int(distances.argmax()), distances.shape)
    return x0 + int(column) - 1, y0 + int(row) - 1


def _distances() -> Callable[[BoolArray], NDArray[np.float64]]:
    library = require("scipy.ndimage", RESULTS, "finding the centres of objects")
    return library.distance_transform_edt
