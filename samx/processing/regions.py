"""Small holes and islands: pixels that touch, corners included, and too few of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.extras import require
from samx.models.session import FloatArray
from samx.processing.postprocess import BoolArray
from samx.processing.rle import RESULTS

NEIGHBOURS = np.ones((3, 3), np.bool_)  # corners touch
SURE = 10.0  # logits from the threshold, for what is filled or removed. Source: SAM2Transforms.postprocess_masks


def regions_library() -> Any:
    """Import what finds regions.

    Raises: MissingExtraError.
    """
    return require("scipy.ndimage", RESULTS, "removing small regions")


def _labelled(mask: BoolArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the regions of a mask from 1 on, and count the pixels of each number. Shapes: -> (H, W), (K + 1)."""
    labels, _ = regions_library().label(mask, NEIGHBOURS)
    return labels, np.bincount(labels.ravel())


def without_small_holes(mask: BoolArray, area_px: int) -> tuple[BoolArray, bool]:
    """Fill holes of fewer pixels; say whether there were any. What is around the mask is a hole too, if it is small.

    Source: segment_anything's remove_small_regions, mode "holes".
    """
    labels, sizes = _labelled(~mask)
    small = sizes < area_px
    small[0] = False
    return (mask | small[labels], True) if small.any() else (mask, False)


def without_small_islands(mask: BoolArray, area_px: int) -> tuple[BoolArray, bool]:
    """Remove islands of fewer pixels; say whether there were any. If all are small, the largest stays.

    Source: segment_anything's remove_small_regions, mode "islands".
    """
    labels, sizes = _labelled(mask)
    kept = sizes >= area_px
    kept[0] = False
    if kept[1:].all():
        return mask, False
    if not kept.any():
        kept[_largest(labels, sizes)] = True
    return kept[labels], True


def _largest(labels: NDArray[np.int32], sizes: NDArray[np.int64]) -> int:
    """Return the largest region's number; of equal ones, that which OpenCV numbers first.

    It looks at blocks of 2 x 2 pixels, row by row.
    """
    tied = 1 + np.flatnonzero(sizes[1:] == sizes[1:].max())
    blocks = -(-labels.shape[1] // 2)
    first = [((rows // 2) * blocks + columns // 2).min() for rows, columns in (np.nonzero(labels == n) for n in tied)]
    return int(tied[np.argmin(first)])


def mended_logits(low_res: FloatArray, threshold: float, area: int) -> FloatArray:
    """Fill holes and remove islands of at most so many pixels of a mask before it is resized. Shapes: (S, S).

    Source: SAM2Transforms.postprocess_masks; both are looked for in the mask as it was.
    """
    filled = np.where(_small(low_res <= threshold, area), np.float32(threshold + SURE), low_res)
    return np.where(_small(low_res > threshold, area), np.float32(threshold - SURE), filled)


def _small(mask: BoolArray, area: int) -> BoolArray:
    labels, sizes = _labelled(mask)
    small = sizes <= area
    small[0] = False
    return small[labels]
