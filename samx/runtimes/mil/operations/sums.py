"""Operations along axes: convolutions, products, sums, extremes, softmax, norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from samx.runtimes.mil.operations.base import NUMBERS, Operation, filled


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Sequence[int] = (1, 1), pad_type: str = "valid",
    pad: Sequence[int] = (), dilations: Sequence[int] = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolve two axes without padding. Weights may be of another float type; the result is of x's."""
    arguments = (weight, bias, tuple(strides), 0, tuple(dilations), groups)
    if all(size == 1 for size in (*weight.shape[2:], *strides)):
        return F.conv2d(filled(x, -1), *arguments)[..., : x.shape[-1]]
    return F.conv2d(x, *arguments)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Multiply matrices, the axes in front broadcast."""
    x = x.transpose(-1, -2) if transpose_x else x
    y = y.transpose(-1, -2) if transpose_y else y
    rows, columns = x.shape[-2], y.shape[-1]
    return torch.matmul(filled(filled(x, -1), -2), filled(filled(y, -1), -2))[..., :rows, :columns]


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Multiply along the last axis of the one and the channels of the other."""
    return torch.einsum(equation, *values)


def reduce_sum(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Add up along some axes, or all."""
    return x.sum(tuple(range(x.ndim) if axes is None else axes), keep_dims)


def reduce_max(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    """Return the largest along some axes, or of all."""
    return x.amax(tuple(range(x.ndim) if axes is None else axes), keep_dims)


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Return the index of the largest value, of equal ones the first."""
    return torch.argmax(x, axis, keep_dims)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Normalise exponentials to a sum of 1."""
    return torch.softmax(filled(x, axis, -torch.inf), axis).narrow(axis, 0, x.shape[axis])


def layer_norm(
    x: Tensor, axes: Sequence[int], gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Centre, divide by the deviation, scale and shift, over some axes."""
    chosen = [axis % x.ndim for axis in axes]
    sizes = [size if axis in chosen else 1 for axis, size in enumerate(x.shape)]
    width, last = x.shape[-1], x.ndim - 1
    x = x if last in chosen else filled(x, last)
    centred = x - x.mean(chosen, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(chosen, keepdim=True) + epsilon)
    normal = normal if gamma is None else normal * gamma.reshape(sizes)
    normal = normal if beta is None else normal + beta.reshape(sizes)
    return normal[..., :width]


OPERATIONS: Mapping[str, Operation] = {
    "conv": Operation(conv, ("strides", "pad_type", "pad", "dilations", "groups"), only={"pad_type": ("valid",)}),
    "matmul": Operation(matmul, ("transpose_x", "transpose_y"), alike=("x", "y"), types=NUMBERS),
    "einsum": Operation(einsum, ("equation",), alike=("values",)),
    "reduce_sum": Operation(reduce_sum, ("axes", "keep_dims"), types=NUMBERS),
    "reduce_max": Operation(reduce_max, ("axes", "keep_dims"), types=NUMBERS),
    "reduce_argmax": Operation(reduce_argmax, ("axis", "keep_dims", "output_dtype"), types=NUMBERS),
    "softmax": Operation(softmax, ("axis",)),
    "layer_norm": Operation(layer_norm, ("axes", "epsilon")),
}
