"""How far a mask agrees with the true one: IoU, Dice and boundary IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samx.processing.postprocess import BoolArray, mask_box
from samx.validators.metrics import mask_iou

# Of the picture's diagonal. Source: Cheng et al., "Boundary IoU" (CVPR 2021), section 4: 15 px in COCO's pictures.
BOUNDARY_SHARE = 0.02


@dataclass(frozen=True)
class Scores:
    """Hold a mask's agreement with the truth, 0 to 1."""

    iou: float
    dice: float
    boundary_iou: float


def score(truth: BoolArray, mask: BoolArray) -> Scores:
    """Compare a mask with the true one, which has pixels. Shapes: (H, W) x 2.

    Raises: nothing; an empty mask scores 0.
    """
    x0, y0, x1, y1 = mask_box(truth | mask) or (0, 0, 0, 0)
    parts = truth[y0:y1, x0:x1], mask[y0:y1, x0:x1]  # beyond, both are empty, and so are their boundaries
    iou = overlap(*parts)
    width = boundary_px(*truth.shape)
    return Scores(iou, 2 * iou / (1 + iou), overlap(*(boundary(part, width) for part in parts)))


def overlap(truth: BoolArray, mask: BoolArray) -> float:
    """Divide the common area by the joint one. Shapes: (H, W) x 2."""
    return float(mask_iou(truth.ravel(), mask.ravel()))


def boundary_px(height: int, width: int) -> int:
    """Return how far inside a mask its boundary reaches, of a picture of that size."""
    return max(1, round(BOUNDARY_SHARE * float(np.hypot(height, width))))


def boundary(mask: BoolArray, width_px: int) -> BoolArray:
    """Keep a mask's pixels that are at most so far from its outside, or from the picture's border, corners counted.

    Shapes: (H, W). Source: boundary_iou's mask_to_boundary, which erodes by a 3 x 3 square so many times.
    """
    return mask & ~_all_around(_all_around(mask, width_px).T, width_px).T


def _all_around(mask: BoolArray, reach: int) -> BoolArray:
    """Keep pixels whose neighbours on the line, as far as that to both sides, are all in the mask. Shapes: (H, W)."""
    sums = np.cumsum(np.pad(mask, ((0, 0), (reach + 1, reach))), axis=1, dtype=np.int32)
    window = 2 * reach + 1
    return np.asarray(sums[:, window:] - sums[:, :-window] == window)
