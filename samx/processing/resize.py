"""Resize pictures as image encoders were trained with: a bilinear filter, for most widened where the picture gets
smaller.

The weights are those of Pillow and of PyTorch's antialias. A picture is reduced along one side after the other, a block
of lines at a time, which stays in the processor's cache. No matrix products: NumPy's start threads that nobody asked
for, and two processes on two cores then did half of what one does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # lines at a time
# Where values are rounded to 8 bits after each side, weights are whole multiples of 1 / ONE. Source: Pillow's Resample.
ONE = 1 << 22

Pixels = NDArray[Any]


def resized(
    image: NDArray[np.uint8], width_px: int, height_px: int, floats: bool, antialiases: bool = True
) -> NDArray[np.float32]:
    """Resize a picture; values stay 0 to 255.

    floats: keep them as numbers, as PyTorch does; else round to 8 bits after each side, the width first, as Pillow does
    (bit by bit; since its release 13 it begins with the height of some, which moves values by 1).
    antialiases: widen the filter where the picture gets smaller; without, a pixel is made of its nearest, and a number.
    Shapes: (H, W, 3) -> (height_px, width_px, 3).
    """
    height, width, channels = image.shape
    if floats:  # the height first: its lines lie together
        columns = _product(image.reshape(height, -1), height_px, np.dtype(np.float32), antialiases=antialiases)
        planes = _product(columns.reshape(width, -1), width_px, np.dtype(np.float32), antialiases=antialiases)
        return planes.reshape(channels, height_px, width_px).transpose(1, 2, 0)
    rows = _whole_product(image.transpose(1, 0, 2).reshape(width, -1), width_px)
    turned = _whole_product(rows.reshape(height, -1), height_px)
    return turned.reshape(channels, width_px, height_px).transpose(2, 1, 0).astype(np.float32)


def _whole_product(lines: Pixels, count: int) -> Pixels:
    """Resize in whole numbers: float64 holds each sum exactly."""
    return np.floor(_product(lines, count, np.dtype(np.float64), ONE) / ONE + 0.5).astype(np.uint8)


def _product(
    lines: Pixels, count: int, dtype: np.dtype[Any], one: int | None = None, antialiases: bool = True
) -> Pixels:
    """Return `count` weighted sums of lines, turned: what the other side needs. Shapes: (L, N) -> (N, count)."""
    first, weights = _weights(len(lines), count, antialiases)
    weights = (weights if one is None else np.floor(weights * one + 0.5)).astype(dtype)
    result = np.empty((lines.shape[1], count), dtype)
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        sums = np.zeros((len(first[block]), lines.shape[1]), dtype)
        for place, weight in enumerate(weights[block].T):
            at = np.minimum(first[block] + place, len(lines) - 1)  # what is cut off beyond the end weighs 0
            sums += lines[at] * weight[:, None]
        result[:, block] = sums.T
    return result


def _weights(length: int, count: int, antialiases: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first pixel that each new one is made of, and the weights from there on. Shapes: (N), (N, K)."""
    scale = length / count
    reach = max(scale, 1.0) if antialiases else 1.0
    centres = (np.arange(count) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + reach + 0.5).astype(np.int64), length)
    at = first[:, None] + np.arange(int((end - first).max()))
    weights = np.maximum(1 - np.abs(at + 0.5 - centres[:, None]) / reach, 0) * (at < end[:, None])
    return first, weights / weights.sum(axis=1, keepdims=True)
