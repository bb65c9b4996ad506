"""Turns scenes into prompts: which region is meant, and the clicks and boxes that a user would give for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.demo.model import PICTURE_POOL
from samx.models.families import find

Array = NDArray[Any]
Rng = np.random.Generator

MIN_REGION_SHARE = 0.0012  # of the picture: smaller visible regions are nobody's target
MIN_REGION_PX = 4


@dataclass(frozen=True)
class Region:
    """Describe one region that can be asked for.

    A click means the smallest region under it. `own` is where a click means this region: its visible
    pixels that belong to nothing smaller.
    """

    level: int
    mask: Array
    own: Array
    box: tuple[int, int, int, int]


def find_regions(ids: Array) -> list[Region]:
    """List the regions of a scene that are large enough. Shapes: ids (3, S, S)."""
    smallest = max(MIN_REGION_PX, MIN_REGION_SHARE * ids[0].size)
    regions = []
    for level, plane in enumerate(ids):
        free = ids[level + 1] == 0 if level < 2 else np.ones(plane.shape, bool)
        for region in np.unique(plane):
            mask = plane == region
            own = mask & free
            if region != 0 and own.sum() >= smallest:
                regions.append(Region(level, mask, own, bounding_box(mask)))
    return regions


def bounding_box(mask: Array) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom (exclusive) of a mask, in its pixels."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def erode(mask: Array) -> Array:
    """Take one pixel off a mask's border; the picture's border counts as outside."""
    padded = np.pad(mask, 1)
    inner: Array = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner


def centre_pixel(mask: Array) -> tuple[int, int]:
    """Return (x, y) of a pixel that lies as far from the mask's border as any."""
    inner = mask
    while (smaller := erode(inner)).any():
        inner = smaller
    ys, xs = np.nonzero(inner)
    middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return int(xs[middle]), int(ys[middle])


def random_pixel(rng: Rng, mask: Array, most_erosion: int = 3) -> tuple[int, int]:
    """Return (x, y) of a random pixel of a mask, mostly away from its border."""
    for _ in range(int(rng.integers(0, most_erosion + 1))):
        smaller = erode(mask)
        if not smaller.any():
            break
        mask = smaller
    chosen = rng.choice(np.flatnonzero(mask))
    return int(chosen % mask.shape[1]), int(chosen // mask.shape[1])


def frame_point(pixel: tuple[int, int], pool: float = PICTURE_POOL) -> tuple[float, float]:
    """Turn a picture pixel, which is `pool` px of the frame a side, into the frame's coordinates of its centre."""
    return tuple((c + 0.5) * pool - 0.5 for c in pixel)  # type: ignore[return-value]


def frame_box(box: tuple[int, int, int, int], pool: float = PICTURE_POOL) -> list[tuple[float, float]]:
    """Turn a picture box into its two frame corners."""
    left, top, right, bottom = (float(c) * pool for c in box)
    return [(left, top), (right, bottom)]


def jittered_box(
    rng: Rng, box: tuple[int, int, int, int], side_px: int, pool: float = PICTURE_POOL
) -> list[tuple[float, float]]:
    """Move a box's corners by a tenth of its sides, 20 px of a 1024 px frame at most, as SAM's training does."""
    (left, top), (right, bottom) = frame_box(box, pool)
    most = 20.0 * side_px / 1024.0
    noise = rng.normal(0.0, 0.1, 4) * (right - left, bottom - top, right - left, bottom - top)
    noise = np.clip(noise, -most, most)
    x0, y0, x1, y1 = np.clip(np.array([left, top, right, bottom]) + noise, 0, side_px)
    return [(float(min(x0, x1 - 1)), float(min(y0, y1 - 1))), (float(x1), float(y1))]


def padded_prompt(
    family: str, points: list[tuple[float, float]], labels: list[int], box: list[tuple[float, float]] | None
) -> tuple[list[tuple[float, float]], list[int]]:
    """Put points and a box in the order of the family's own predictor, with its padding point."""
    corners, corner_labels = (box, [2, 3]) if box is not None else ([], [])
    coords, codes = [*points, *corners, (0.0, 0.0)], [*labels, *corner_labels, -1]
    rows = find(family).rows(len(points), has_box=box is not None)
    return [coords[row] for row in rows], [codes[row] for row in rows]


def error_click(
    rng: Rng, predicted: Array, target: Array, pool: float = PICTURE_POOL
) -> tuple[tuple[float, float], int]:
    """Place a corrective click in the larger of what is missing and what is too much."""
    missing, extra = target & ~predicted, predicted & ~target
    wrong, label = (missing, 1) if missing.sum() >= extra.sum() else (extra, 0)
    if not wrong.any():
        wrong, label = target, 1
    return frame_point(random_pixel(rng, wrong), pool), label


def pick_region(rng: Rng, regions: list[Region]) -> Region:
    """Choose a level first, then a region of it, so that all levels are asked for alike."""
    level = rng.choice(sorted({region.level for region in regions}))
    there = [region for region in regions if region.level == level]
    return there[int(rng.integers(len(there)))]
