"""Operations that only move values: shapes, slices, joins, choices by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from samx.runtimes.mil.operations.base import ANYTHING, Operation


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Change the shape: -1 is what is left, 0 is x's size at the same place counted from the right."""
    padded = [1] * len(shape) + list(x.shape)
    return x.reshape([size or padded[i - len(shape)] for i, size in enumerate(shape)])


def expand_dims(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Insert axes of size 1; their numbers are those of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Drop axes of size 1; other sizes stay, as in PyTorch."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    """Reorder axes."""
    return x.permute(tuple(perm))


def slice_by_index(
    x: Tensor, begin: Sequence[int], end: Sequence[int], stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None, end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:  # fmt: skip
    """Slice forwards as NumPy does; a mask leaves a side open, or drops an axis by taking its one index."""
    none = [False] * x.ndim
    first = [None if is_open else at for is_open, at in zip(begin_mask or none, begin, strict=True)]
    last = [None if is_open else at for is_open, at in zip(end_mask or none, end, strict=True)]
    parts = map(slice, first, last, stride or [1] * x.ndim)
    dropped = zip(squeeze_mask or none, first, parts, strict=True)
    return x[tuple((at or 0) if is_dropped else part for is_dropped, at, part in dropped)]


def concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Join along an axis."""
    return torch.cat(list(values), axis)


def tile(x: Tensor, reps: Sequence[int]) -> Tensor:
    """Repeat along each axis."""
    return x.repeat(tuple(reps))


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Turn groups of channels into squares of pixels, as PyTorch orders them."""
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Turn squares of pixels into groups of channels, as PyTorch orders them."""
    return F.pixel_unshuffle(x, downscale_factor)


def _moving(compute: Callable[..., Tensor], *values: str) -> Operation:
    return Operation(compute, values, types=ANYTHING, moves=True)


OPERATIONS: Mapping[str, Operation] = {
    "reshape": _moving(reshape, "shape"),
    "expand_dims": _moving(expand_dims, "axes"),
    "squeeze": _moving(squeeze, "axes"),
    "transpose": _moving(transpose, "perm"),
    "slice_by_index": _moving(
        slice_by_index, "begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask"
    ),
    "concat": Operation(
        concat, ("axis", "interleave"), ("values",), ANYTHING, moves=True, only={"interleave": (False,)}
    ),
    "tile": _moving(tile, "reps"),
    "pixel_shuffle": Operation(pixel_shuffle, ("upscale_factor",), moves=True),
    "pixel_unshuffle": Operation(pixel_unshuffle, ("downscale_factor",), moves=True),
}  # fmt: skip
