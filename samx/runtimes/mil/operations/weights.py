"""Operations on quantised values: compressed weights unfolded, activations quantised and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samx.formats.coreml.storage import FLOATS, RANGES
from samx.runtimes.mil.operations.kinds import Operation

BITS_PER_BYTE = 8
BYTES = frozenset({"int8", "uint8"})
QUANTISED = BYTES | {"int4", "uint4"} | FLOATS
INDICES = frozenset(name for name in RANGES if name.startswith("uint"))


def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Shift and scale, by one number or one for each index of an axis."""
    return _along(scale, quantized_data, axis) * (quantized_data - _along(zero_point, quantized_data, axis))


def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Shift and scale, by one number for each block."""
    shifted = data if offset is None else data - _in_blocks(offset, data.shape)
    return _in_blocks(scale, data.shape) * shifted


def lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Sequence[int] | None = None, vector_axis: int | None = None
) -> Tensor:
    """Look values up: up to iOS 16 by packed indices and one table, from iOS 18 by a table for each block."""
    if shape is not None:
        bits = int(lut.shape[0]).bit_length() - 1
        return lut[_unpacked(indices, bits, math.prod(shape)).to(torch.int64)].reshape(tuple(shape))
    return _looked_up(indices, lut, vector_axis)


def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Put values where the mask has ones: up to iOS 16 the mask is packed."""
    bits = mask if shape is None else _unpacked(mask, 1, math.prod(shape)).reshape(tuple(shape))
    dense = torch.zeros(bits.shape, dtype=nonzero_data.dtype)
    return dense.masked_scatter(bits != 0, nonzero_data)


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """Widen float16 to float32."""
    return source_val


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """Scale, round half to even, shift, and stay within the type."""
    low, high = RANGES[output_dtype]
    steps = torch.round(input / _along(scale, input, axis))
    shifted = steps if zero_point is None else steps + _along(zero_point, input, axis)
    return shifted.clamp(low, high).to(torch.int32)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """Shift back and scale."""
    shifted = input if zero_point is None else input - _along(zero_point, input, axis)
    return _along(scale, input, axis) * shifted


def _along(values: Tensor, data: Tensor, axis: int | None) -> Tensor:
    """Shape a vector to lie along an axis; a single number lies anywhere."""
    if values.ndim == 0 or axis is None:
        return values
    shape = [1] * data.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _in_blocks(values: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape):
        values = values.repeat_interleave(size // values.shape[axis], axis)
    return values


def _unpacked(packed: Tensor, bits: int, count: int) -> Tensor:
    """Take numbers of so many bits out of bytes, lowest bit first, across the bytes' borders."""
    single = (packed.unsqueeze(1) >> torch.arange(BITS_PER_BYTE, dtype=packed.dtype)) & 1
    rows = single.reshape(-1)[: bits * count].reshape(count, bits)
    return (rows << torch.arange(bits, dtype=packed.dtype)).sum(1)


def _looked_up(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    """Shapes: (d...), (d / block..., entries, vector) -> (d...), the vector's axis that much longer."""
    entries, vector = lut.shape[-2:]
    count = math.prod(lut.shape[:-2])
    table = _in_blocks(torch.arange(count).reshape(lut.shape[:-2]), indices.shape)
    found = lut.reshape(count * entries, vector)[table * entries + indices]  # (d..., vector)
    if vector == 1:
        return found.squeeze(-1)
    axis = int(vector_axis or 0) % indices.ndim
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


OPERATIONS: Mapping[str, Operation] = {
    "constexpr_affine_dequantize": Operation(
        affine_dequantize, ("axis",), ("quantized_data",), BYTES, gives=("scale",)
    ),
    "constexpr_blockwise_shift_scale": Operation(
        blockwise_shift_scale, (), ("data",), QUANTISED, gives=("scale",)
    ),
    "constexpr_lut_to_dense": Operation(
        lut_to_dense, ("shape", "vector_axis"), ("indices",), INDICES, gives=("lut",), moves=True
    ),
    "constexpr_sparse_to_dense": Operation(
        sparse_to_dense, ("shape",), ("nonzero_data",), QUANTISED, gives=("nonzero_data",), moves=True
    ),
    "constexpr_cast": Operation(constexpr_cast, ("output_dtype",), ("source_val",), gives=("output_dtype",)),
    "quantize": Operation(quantize, ("axis", "output_dtype"), ("input",), gives=("output_dtype",)),
    "dequantize": Operation(dequantize, ("axis",), ("input",), BYTES, gives=("scale",)),
}  # fmt: skip
