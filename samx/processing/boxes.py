"""Boxes of masks, from the first pixel to the last: which are the same, which are cut off by the border of a crop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samx.models.session import FloatArray

Boxes = NDArray[np.int64]

NEAR_PX = 20  # of a crop's border. Source: Meta's is_box_near_crop_edge


def suppress_overlaps(boxes: Boxes, scores: FloatArray, max_iou: float) -> NDArray[np.intp]:
    """Return the boxes, surest first, that overlap no surer one by more than max_iou; of equals the first.

    A box one pixel wide has no area, and is the same as no other.
    Shapes: (K, 4), (K,). Source: torchvision's nms, with its float32 and its comparison in float64.
    """
    first, last = boxes.astype(np.float32).T.reshape(2, 2, -1)
    areas = np.prod(last - first, axis=0)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        sides = np.minimum(last[:, order], last[:, [best]]) - np.maximum(first[:, order], first[:, [best]])
        shared = np.prod(np.maximum(sides, 0), axis=0)
        with np.errstate(invalid="ignore"):  # two boxes without area: no number, which is not more
            iou = shared / (areas[best] + areas[order] - shared)
        order = order[~(iou.astype(np.float64) > max_iou)]
    return np.array(kept, np.intp)


def is_cut_off(boxes: Boxes, crop: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mark boxes, in their crop, that come near a border of it that is none of the picture.

    Shapes: boxes (K, 4), crop (4,), size (W, H). Source: Meta's is_box_near_crop_edge.
    """
    moved = boxes + np.tile(crop[:2], 2)
    near_crop = np.abs(moved - crop) <= NEAR_PX
    near_picture = np.abs(moved - np.array([0, 0, *size])) <= NEAR_PX
    return np.asarray((near_crop & ~near_picture).any(axis=1))


def tile_boxes(width_px: int, height_px: int, side_px: int, shared_px: int) -> list[tuple[int, int, int, int]]:
    """Cut a picture into tiles, row by row; the last of a row and column moves back, to end with the picture.

    Units: the boxes end beyond their last pixels.
    """
    columns, rows = (_starts(length, side_px, shared_px) for length in (width_px, height_px))
    return [(x, y, min(x + side_px, width_px), min(y + side_px, height_px)) for y in rows for x in columns]


def _starts(length_px: int, side_px: int, shared_px: int) -> list[int]:
    last = max(length_px - side_px, 0)
    return [*range(0, last, side_px - shared_px), last]


def crop_boxes(width_px: int, height_px: int, layers: int, overlap_ratio: float) -> list[tuple[int, tuple[int, ...]]]:
    """Cut a picture into overlapping crops, layer by layer, 2 to a side, then 4: each layer's number and box.

    Units: the boxes end beyond their last pixels. Source: Meta's generate_crop_boxes.
    """
    found: list[tuple[int, tuple[int, ...]]] = [(0, (0, 0, width_px, height_px))]
    for layer in range(1, layers + 1):
        sides = 2**layer
        overlap = int(overlap_ratio * min(width_px, height_px) * (2 / sides))
        width, height = (-(-(overlap * (sides - 1) + length) // sides) for length in (width_px, height_px))
        for x in range(sides):
            for y in range(sides):
                left, top = (width - overlap) * x, (height - overlap) * y
                found.append((layer, (left, top, min(left + width, width_px), min(top + height, height_px))))
    return found
