"""Operations on quantised values: weights of 8 bits unfolded, activations quantised and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samx.runtimes.mil.operations.base import RANGES, Operation

INT8, UINT8 = frozenset({"int8"}), frozenset({"uint8"})
PALETTE = 256  # entries


def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Shift and scale, by one number or one for each index of an axis: up to iOS 17."""
    return _along(scale, quantized_data, axis) * (quantized_data - _along(zero_point, quantized_data, axis))


def blockwise_shift_scale(data: Tensor, scale: Tensor) -> Tensor:
    """Scale, by one number or one for each index of some axes: from iOS 18."""
    return scale * data


def lut_to_dense(indices: Tensor, lut: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Look values up in one table, by bytes: up to iOS 17 they come in a row, from iOS 18 in the weight's shape.

    Raises: ValueError for several tables, and for indices of fewer bits.
    """
    if lut.numel() != PALETTE:
        raise ValueError(f"takes tables of {tuple(lut.shape)}")
    found = lut.reshape(-1)[indices.to(torch.int64)]
    return found if shape is None else found.reshape(tuple(shape))


def quantize(input: Tensor, scale: Tensor, output_dtype: str) -> Tensor:
    """Scale, round half to even, and stay within the type."""
    low, high = RANGES[output_dtype]
    return torch.round(input / scale).clamp(low, high).to(torch.int32)


def dequantize(input: Tensor, scale: Tensor) -> Tensor:
    """Scale back."""
    return scale * input


def _along(values: Tensor, data: Tensor, axis: int) -> Tensor:
    """Shape a vector to lie along an axis; a single number lies anywhere."""
    if values.ndim == 0:
        return values
    shape = [1] * data.ndim
    shape[axis] = -1
    return values.reshape(shape)


OPERATIONS: Mapping[str, Operation] = {
    "constexpr_affine_dequantize": Operation(affine_dequantize, ("axis",), ("quantized_data",), INT8),
    "constexpr_blockwise_shift_scale": Operation(blockwise_shift_scale, (), ("data",), INT8),
    "constexpr_lut_to_dense": Operation(lut_to_dense, ("shape",), ("indices",), UINT8, moves=True),
    "quantize": Operation(quantize, ("output_dtype",), ("input",)),
    "dequantize": Operation(dequantize, (), ("input",), INT8),
}
