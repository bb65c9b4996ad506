"""Operations that only move values: shapes, slices, joins, choices by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from samx.runtimes.mil.operations.kinds import ANYTHING, Operation, Result


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
    """Slice as NumPy does; a mask leaves a border open, or drops an axis by taking its one index."""
    none = [False] * x.ndim
    opened, closed, dropped = begin_mask or none, end_mask or none, squeeze_mask or none
    steps = stride or [1] * x.ndim
    for axis in reversed(range(x.ndim)):  # from the right, because an axis may go
        if dropped[axis]:
            x = x.select(axis, 0 if opened[axis] else begin[axis])
            continue
        first, last = None if opened[axis] else begin[axis], None if closed[axis] else end[axis]
        x = _sliced(x, axis, slice(first, last, steps[axis]))
    return x


def slice_by_size(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """Take so many from there on; -1 takes all that are left."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Join along an axis, one after the other or taking turns."""
    if values[0].ndim == 0:
        return torch.stack(list(values))
    if interleave:
        behind = axis % values[0].ndim + 1
        return torch.stack(list(values), behind).flatten(behind - 1, behind)
    return torch.cat(list(values), axis)


def stack(values: Sequence[Tensor], axis: int) -> Tensor:
    """Join along a new axis."""
    return torch.stack(list(values), axis)


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None
) -> Sequence[Tensor]:
    """Cut into parts of given sizes, or into equal ones."""
    sizes = [x.shape[axis] // int(num_splits or 1)] * int(num_splits or 1) if split_sizes is None else list(split_sizes)
    return torch.split(x, sizes, axis)


def tile(x: Tensor, reps: Sequence[int]) -> Tensor:
    """Repeat along each axis."""
    return x.repeat(tuple(reps))


def fill(shape: Sequence[int], value: Tensor) -> Tensor:
    """Give a tensor of one value."""
    return value.expand(tuple(shape))


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Put a constant around the last axes: before and after each, first axis first."""
    pairs = [pad[i : i + 2] for i in range(0, len(pad), 2)]
    return F.pad(x, [size for pair in reversed(pairs) for size in pair], mode, constant_val)


def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool | None = None
) -> Tensor:
    """Take slices by index along an axis."""
    chosen = _indices(indices, x.shape[axis], validate_indices)
    rows = x.index_select(axis, chosen.reshape(-1))
    axis %= x.ndim
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool | None = None) -> Tensor:
    """Take single values by index along an axis."""
    return x.gather(axis, _indices(indices, x.shape[axis], validate_indices))


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Turn groups of channels into squares of pixels, as PyTorch orders them."""
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Turn squares of pixels into groups of channels, as PyTorch orders them."""
    return F.pixel_unshuffle(x, downscale_factor)


def _sliced(x: Tensor, axis: int, part: slice) -> Tensor:
    start, stop, step = part.indices(x.shape[axis])
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, max(start, stop), step),)]
    return x.index_select(axis, torch.tensor(range(start, stop, step), dtype=torch.int64))


def _indices(indices: Tensor, size: int, validate_indices: bool | None) -> Tensor:
    """Check indices. Those from the end are known up to iOS 16, whose operations have no `validate_indices`."""
    if indices.dtype != torch.int32:
        raise ValueError(f"takes indices of {indices.dtype}")
    least = -size if validate_indices is None else 0
    if indices.numel() and not least <= int(indices.min()) <= int(indices.max()) < size:
        raise ValueError(f"takes index {int(indices.min())} to {int(indices.max())} of {size}")
    return indices.to(torch.int64) % size if size else indices.to(torch.int64)


def _moving(compute: Callable[..., Result], *values: str, of: str = "x") -> Operation:
    return Operation(compute, values, (of,), ANYTHING, (of,), moves=True)


OPERATIONS: Mapping[str, Operation] = {
    "reshape": _moving(reshape, "shape"),
    "expand_dims": _moving(expand_dims, "axes"),
    "squeeze": _moving(squeeze, "axes"),
    "transpose": _moving(transpose, "perm"),
    "slice_by_index": _moving(
        slice_by_index, "begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask"
    ),
    "slice_by_size": _moving(slice_by_size, "begin", "size"),
    "concat": _moving(concat, "axis", "interleave", of="values"),
    "stack": _moving(stack, "axis", of="values"),
    "split": _moving(split, "axis", "num_splits", "split_sizes"),
    "tile": _moving(tile, "reps"),
    "fill": _moving(fill, "shape", of="value"),
    "pad": Operation(pad, ("pad", "mode", "constant_val"), moves=True, only={"mode": ("constant",)}),
    "gather": Operation(
        gather, ("axis", "batch_dims", "validate_indices"), types=ANYTHING, moves=True, only={"batch_dims": (0,)}
    ),
    "gather_along_axis": Operation(gather_along_axis, ("axis", "validate_indices"), types=ANYTHING, moves=True),
    "pixel_shuffle": Operation(pixel_shuffle, ("upscale_factor",), moves=True),
    "pixel_unshuffle": Operation(pixel_unshuffle, ("downscale_factor",), moves=True),
}  # fmt: skip
