"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from samx.runtimes.mil.operations.kinds import NUMBERS, Operation
from samx.runtimes.mil.operations.steady import filled

CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip
PARAMETERS = ("strides", "pad_type", "pad", "dilations", "groups")


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Sequence[int] | None = None,
    pad_type: str = "valid", pad: Sequence[int] | None = None, dilations: Sequence[int] | None = None, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolve in one to three dimensions."""
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(pad_type, pad, list(x.shape[2:]), reach, strides)
    if any(map(any, pads)):
        x = F.pad(x, [size for pair in reversed(pads) for size in pair])
    arguments = (weight, bias, tuple(strides), 0, tuple(dilations), groups)
    if all(size == 1 for size in (*weight.shape[2:], *strides)):
        return CONVOLUTIONS[rank](filled(x, -1), *arguments)[..., : x.shape[-1]]
    return CONVOLUTIONS[rank](x, *arguments)


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Sequence[int] | None = None,
    pad_type: str = "valid", pad: Sequence[int] | None = None, dilations: Sequence[int] | None = None, groups: int = 1,
    output_shape: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Convolve the other way round; `pad` is cut off, and what an output shape asks for beyond is bias alone."""
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    cuts = _custom(pad, rank) if pad_type == "custom" else [(0, 0)] * rank
    whole = TRANSPOSED[rank](x, weight, None, tuple(strides), 0, 0, groups, tuple(dilations))
    for axis, (before, after) in enumerate(cuts, 2):
        size = whole.shape[axis] - before - after if output_shape is None else output_shape[axis]
        missing = max(before + size - whole.shape[axis], 0)
        whole = F.pad(whole, [0, 0] * (whole.ndim - 1 - axis) + [0, missing]).narrow(axis, before, size)
    return whole if bias is None else whole + bias.reshape(-1, *[1] * rank)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight, add the bias."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Multiply matrices, the axes in front broadcast."""
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    if x.ndim < 2 or y.ndim < 2:
        return torch.matmul(x, y)
    rows, columns = x.shape[-2], y.shape[-1]
    return torch.matmul(filled(filled(x, -1), -2), filled(filled(y, -1), -2))[..., :rows, :columns]


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Multiply along the last axis of the one and the channels of the other."""
    return torch.einsum(equation, *values)


def _pads(
    pad_type: str, pad: Sequence[int] | None, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Give what is put before and after each spatial axis."""
    if pad_type == "custom":
        return _custom(pad, len(sizes))
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    # So many that every stride starts inside: ceil(size / stride) results.
    needed = [
        max((-(-size // step) - 1) * step + far - size, 0)
        for size, far, step in zip(sizes, reach, strides, strict=True)
    ]
    less = [(total // 2, total - total // 2) for total in needed]
    return less if pad_type == "same" else [(after, before) for before, after in less]


def _custom(pad: Sequence[int] | None, rank: int) -> list[tuple[int, int]]:
    sizes = [0] * (2 * rank) if pad is None else list(pad)
    return [(sizes[2 * i], sizes[2 * i + 1]) for i in range(rank)]


OPERATIONS: Mapping[str, Operation] = {
    # Weights may be of another float type than what they are applied to, and the result is of the latter's.
    "conv": Operation(conv, PARAMETERS, only={"pad_type": ("valid", "custom", "same", "same_lower")}),
    "conv_transpose": Operation(
        conv_transpose, (*PARAMETERS, "output_shape"), only={"pad_type": ("valid", "custom")}
    ),
    "linear": Operation(linear),
    "matmul": Operation(
        matmul, ("transpose_x", "transpose_y"), alike=("x", "y"), types=NUMBERS, gives=("x", "y"), mixes=True
    ),
    "einsum": Operation(einsum, ("equation",), alike=("values",), gives=("values",)),
}  # fmt: skip
