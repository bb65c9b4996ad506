"""Image embeddings without a picture, computed with integers so that every machine makes the same bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samx.models.session import Feed, FloatArray
from samx.models.spec import DecoderSpec, TensorSpec
from samx.validators.cases import default_frames

Integers = NDArray[np.int64]
# Stored suites name these two and no pixels. Any change below must raise the number.
GENERATOR_VERSION = 1
UNIT = 512  # values are integers / UNIT and below 4: exact in float16

CELL = 8  # positions between two nodes of the smooth part
# Half widths in 1 / UNIT: together a standard deviation of about 0.5, as trained image encoders give (0.3 to 1).
SMOOTH, OFFSET, NOISE = 512, 256, 64
NOISE_DRAWS = 4  # a sum of four is close enough to a bell curve


def synthetic_images(spec: DecoderSpec, seed: int = 0, count: int = 2) -> list[Feed]:
    """Make smooth, noisy embeddings; for SAM 1 every second one has the padding of a picture that is not square."""
    frames = default_frames(spec, count)
    return [_image(spec, [seed, i], height / spec.image_size) for i, (_, height) in enumerate(frames)]


def _image(spec: DecoderSpec, key: list[int], valid: float) -> Feed:
    return {tensor.name: _tensor(tensor, [*key, i], valid) for i, tensor in enumerate(spec.image_inputs)}


def _tensor(tensor: TensorSpec, key: list[int], valid: float) -> FloatArray:
    _, channels, height, width = (int(size) for size in tensor.shape)
    offset = _uniform((channels, 1, 1), OFFSET, [*key, 0])
    smooth = _smooth(channels, height, width, [*key, 1])
    draws = [_uniform((channels, height, width), NOISE, [*key, 2 + i]) for i in range(NOISE_DRAWS)]
    rows = np.arange(height)[:, None]
    picture = np.where(rows < round(valid * height), smooth + np.sum(draws, axis=0), 0)
    values = offset + picture  # padding: one value a channel
    return (values / UNIT).astype(np.float32)[None]


def _smooth(channels: int, height: int, width: int, key: list[int]) -> Integers:
    """Interpolate a coarse grid bilinearly, in integers."""
    nodes = _uniform((channels, height // CELL + 2, width // CELL + 2), SMOOTH, key)
    columns = _interpolate(nodes, height).swapaxes(1, 2)
    smooth: Integers = _interpolate(columns, width).swapaxes(1, 2) // (CELL * CELL)
    return smooth


def _interpolate(nodes: Integers, length: int) -> Integers:
    position: Integers = np.arange(length, dtype=np.int64)
    node, step = position // CELL, (position % CELL)[:, None]
    mixed: Integers = (CELL - step) * nodes[:, node] + step * nodes[:, node + 1]
    return mixed


def _uniform(shape: tuple[int, ...], half_width: int, key: list[int]) -> Integers:
    """Draw integers from -half_width to half_width - 1 (a power of two): the top bits of a mixed counter."""
    start = np.uint64(0)
    for part in key:
        start = _mix(np.array([start + np.uint64(part)]))[0]
    bits = _mix(start + np.arange(int(np.prod(shape)), dtype=np.uint64))
    top = bits >> np.uint64(64 - (2 * half_width).bit_length() + 1)
    return top.astype(np.int64).reshape(shape) - half_width


def _mix(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers. Source: the SplitMix64 generator of Steele, Lea and Flood (2014)."""
    with np.errstate(over="ignore"):  # wrapping around is the point
        mixed = counter * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
