"""Sketch: what a suite keeps of an array of millions of values, so that each of them is looked at.

Of each group of neighbours it keeps their sum, each times a weight of its own from 0.5 to 1.5 and of either sign, and
one value in full. A wrong value shows in its group's sum with half its error or more, and the differences of all sums
together give the size of the whole error: their squares add up to its squares, times the weights' mean square.
Source: Alon, Matias and Szegedy, "The space complexity of approximating the frequency moments" (1996).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samx.models.session import FloatArray

GROUP = 128  # values: an exact one and a sum of each group are a sixty-fourth of the array
LEAST_WEIGHT = 0.5
MEAN_SQUARE = 13 / 12  # of weights that are even between 0.5 and 1.5
STRIDE = 37  # odd, so that neighbouring groups keep values at other places
MIX = (0x7FEB352D, 0x846CA68B)  # multipliers of a 32-bit mixer of good avalanche. Source: C. Wellons, lowbias32


class Sketch(NamedTuple):
    """Keep a sketch of an array. Shapes: sums, lattice (groups,); scale (2,): largest value, root of summed squares."""

    sums: FloatArray
    lattice: FloatArray
    scale: NDArray[np.float64]


class Difference(NamedTuple):
    """Say how far an array is from a sketch's, relative to it."""

    error: float  # of all values together, by their squares
    largest: float  # that a single value shows, relative to the largest value


def sketch(values: FloatArray) -> Sketch:
    """Return an array's sketch."""
    exact = values.ravel().astype(np.float64)
    sums, lattice = _summed(values)
    return Sketch(sums.astype(np.float32), lattice, np.array([abs(exact).max(), np.sqrt(exact @ exact)]))


def difference(right: Sketch, values: FloatArray) -> Difference:
    """Compare an array with a sketch."""
    sums, lattice = _summed(values)
    apart = sums - right.sums
    largest = max(abs(apart).max(), abs(lattice.astype(np.float64) - right.lattice).max())
    return Difference(float(np.sqrt(apart @ apart / MEAN_SQUARE) / right.scale[1]), float(largest / right.scale[0]))


def groups(size: int) -> int:
    """Return the number of groups of an array."""
    return -(-size // GROUP)


def _summed(values: FloatArray) -> tuple[NDArray[np.float64], FloatArray]:
    """Return the weighted sum of each group, and its value that is kept."""
    count = groups(values.size)
    padded = np.zeros(count * GROUP, np.float32)
    padded[: values.size] = values.ravel()
    grouped = padded.reshape(count, GROUP)
    sums = np.einsum("gi,gi->g", grouped, _weights(count * GROUP).reshape(count, GROUP), dtype=np.float64)
    lattice = grouped[np.arange(count), STRIDE * np.arange(count) % GROUP]
    return sums, lattice


def _weights(count: int) -> NDArray[Any]:
    """Return weights by place, the same on every machine. Shapes: -> (count,)."""
    mixed = np.arange(1, count + 1, dtype=np.uint32)
    for multiplier, shift in zip((1, *MIX), (16, 15, 16), strict=True):
        mixed *= np.uint32(multiplier)
        mixed ^= mixed >> np.uint32(shift)
    magnitude = LEAST_WEIGHT + (mixed >> np.uint32(8)).astype(np.float64) / (1 << 24)
    return np.where(mixed & np.uint32(1), magnitude, -magnitude)
