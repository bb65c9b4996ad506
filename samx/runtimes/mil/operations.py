"""The MIL operations that the evaluator computes, by their names in MIL: those that exports have, and no others.

Both float types are held in float32, a stored fp16 value rounded to what float16 can hold (beyond its range: infinity,
as a real store would give). All integers are held in int32, within the range of their own type.
Source of every operation's meaning: the definitions in coremltools (mil/ops/defs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLOATS, INT32, BOOL = frozenset({"fp16", "fp32"}), frozenset({"int32"}), frozenset({"bool"})
NUMBERS = FLOATS | INT32
RANGES: Mapping[str, tuple[int, int]] = {
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (1, 2, 3, 4, 6, 8, 16)},
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (4, 8, 16, 32)},
}
ANYTHING = FLOATS | BOOL | frozenset(RANGES)
SHORT = 32  # the tokens of a prompt with up to 26 points
CASTS = ("fp16", "fp32", "bool", "int8", "uint8", "int16", "uint16", "int32")
PALETTE = 256  # entries


@dataclass(frozen=True)
class Operation:
    """Describe how one MIL operation is computed from keyword arguments named as in MIL."""

    compute: Callable[..., Tensor]
    # Inputs that must be known before a call; they come as plain Python values, all others as tensors.
    values: tuple[str, ...] = ()
    # Inputs that share one type, and the types that this may be.
    alike: tuple[str, ...] = ("x",)
    types: frozenset[str] = FLOATS
    moves: bool = False  # only returns values that it was given, so that there is nothing to round
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # the values that are known of an input


def holder(dtype: str) -> torch.dtype:
    """Return the type that holds values of a MIL type.

    Raises: ValueError for a type that the evaluator does not have.
    """
    if dtype not in ANYTHING:
        raise ValueError(f"values of type {dtype} are not evaluated")
    return torch.float32 if dtype in FLOATS else torch.bool if dtype == "bool" else torch.int32


def held(value: Any, dtype: str) -> Tensor:
    """Copy an array or a number of a MIL type."""
    wide = {torch.float32: np.float32, torch.int32: np.int32, torch.bool: np.bool_}[holder(dtype)]
    return torch.from_numpy(np.array(value, dtype=wide))


def stored(result: Tensor, dtype: str) -> Tensor:
    """Round or narrow a computed value to the type that it is stored in.

    Raises: ValueError when it is of another kind, or an integer that the type does not hold.
    """
    if result.dtype.is_floating_point != (dtype in FLOATS) or (result.dtype == torch.bool) != (dtype == "bool"):
        raise ValueError(f"gives {result.dtype}, which cannot be stored as {dtype}")
    if dtype == "fp16":
        return result.to(torch.float16).to(torch.float32)
    low, high = RANGES.get(dtype, (0, 0))
    if dtype in RANGES and result.numel() and not low <= int(result.min()) <= int(result.max()) <= high:
        raise ValueError(f"gives {int(result.min())} to {int(result.max())}, which {dtype} does not hold")
    return result.to(holder(dtype))


def filled(x: Tensor, axis: int, value: float = 0.0) -> Tensor:
    """Fill a short axis up to a standard length. Shapes: (..., n, ...) -> (..., 32, ...) where n is less.

    Libraries choose the order of a sum by the shapes. A function whose further points are padding adds the same numbers
    in the same order as one without them when short axes are filled up first, and the two agree to the bit.
    """
    missing = SHORT - x.shape[axis]
    if missing <= 0:
        return x
    behind = x.ndim - 1 - axis % x.ndim
    return F.pad(x, [0, 0] * behind + [0, missing], value=value)


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


def cast(x: Tensor, dtype: str) -> Tensor:
    """Change the type: towards zero into integers, which must hold the value; to bool what is not zero."""
    if dtype == "bool":
        return x != 0
    if dtype in FLOATS:
        return x.to(torch.float32)
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise ValueError(f"casts infinity or NaN to {dtype}")
    return x.to(torch.int64)


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Sequence[int] = (1, 1), pad_type: str = "valid",
    pad: Sequence[int] = (), dilations: Sequence[int] = (1, 1), groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolve two axes. Weights may be of another float type; the result is of x's."""
    x = padded(x, pad) if pad_type == "custom" else x
    arguments = (weight, bias, tuple(strides), 0, tuple(dilations), groups)
    if all(size == 1 for size in (*weight.shape[2:], *strides)):
        return F.conv2d(filled(x, -1), *arguments)[..., : x.shape[-1]]
    return F.conv2d(x, *arguments)


def padded(x: Tensor, pad: Sequence[int]) -> Tensor:
    """Put zeros around two axes: above, below, left, right."""
    top, bottom, left, right = pad
    return F.pad(x, (left, right, top, bottom)) if any(pad) else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the last axis by a matrix. Shapes: (..., in), (out, in), (out,) -> (..., out)."""
    return F.linear(x, weight, bias)


def avg_pool(
    x: Tensor, kernel_sizes: Sequence[int], pad_type: str, strides: Sequence[int] | None = None,
    pad: Sequence[int] = (), exclude_padding_from_average: bool = False, ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """Average over two axes.

    Raises: ValueError for padding, which no export has.
    """
    if any(pad):
        raise ValueError(f"pads by {list(pad)}")
    return F.avg_pool2d(x, tuple(kernel_sizes), tuple(strides or kernel_sizes))


def constant_pad(x: Tensor, pad: Sequence[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last axes with a number, each before and behind."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    return F.pad(x, [size for pair in reversed(pairs) for size in pair], value=constant_val)


def upsample_nearest(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    """Repeat rows and columns.

    Raises: ValueError for anything but whole numbers, of which nowhere is said which pixel is nearest.
    """
    if scale_factor_height % 1 or scale_factor_width % 1:
        raise ValueError(f"enlarges by {scale_factor_height} and {scale_factor_width}")
    return x.repeat_interleave(int(scale_factor_height), 2).repeat_interleave(int(scale_factor_width), 3)


def split(
    x: Tensor, axis: int, part: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None
) -> Tensor:
    """Return one part of an axis: of so many alike, or of these sizes."""
    sizes = list(split_sizes) if split_sizes is not None else x.shape[axis] // (num_splits or 1)
    return x.split(sizes, axis)[part]


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Return one over the root, of x and a small number."""
    return torch.rsqrt(x + epsilon)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Multiply matrices, the axes in front broadcast."""
    x = x.transpose(-1, -2) if transpose_x else x
    y = y.transpose(-1, -2) if transpose_y else y
    rows, columns = x.shape[-2], y.shape[-1]
    return torch.matmul(filled(filled(x, -1), -2), filled(filled(y, -1), -2))[..., :rows, :columns]


def _reduced(reduce: Callable[..., Tensor]) -> Operation:
    """Reduce along some axes, or all."""

    def compute(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
        return reduce(x, tuple(range(x.ndim) if axes is None else axes), keep_dims)

    return Operation(compute, ("axes", "keep_dims"), types=NUMBERS)


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


def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Shift and scale, by one number or one for each index of an axis: up to iOS 17."""
    return _along(scale, quantized_data, axis) * (quantized_data - _along(zero_point, quantized_data, axis))


def _along(values: Tensor, data: Tensor, axis: int) -> Tensor:
    """Shape a vector to lie along an axis; a single number lies anywhere."""
    return (
        values if values.ndim == 0 else values.reshape([-1 if i == axis % data.ndim else 1 for i in range(data.ndim)])
    )


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


def _unary(types: frozenset[str], **functions: Callable[[Tensor], Tensor]) -> dict[str, Operation]:
    # PyTorch calls the argument otherwise.
    return {name: Operation(lambda x, f=function: f(x), types=types) for name, function in functions.items()}


def _binary(types: frozenset[str], **functions: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Operation]:
    return {
        name: Operation(lambda x, y, f=function: f(x, y), alike=("x", "y"), types=types)
        for name, function in functions.items()
    }


def _moving(compute: Callable[..., Tensor], *values: str) -> Operation:
    return Operation(compute, values, types=ANYTHING, moves=True)


GELUS: Mapping[str, str] = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}  # as PyTorch calls them
OPERATIONS: Mapping[str, Operation] = {
    **_unary(FLOATS, cos=torch.cos, sin=torch.sin, sigmoid=torch.sigmoid),
    "rsqrt": Operation(rsqrt, ("epsilon",)),
    **_unary(NUMBERS, abs=torch.abs),
    "relu": Operation(lambda x: F.relu(x), moves=True),
    "gelu": Operation(
        lambda x, mode="EXACT": F.gelu(x, approximate=GELUS[mode]), ("mode",), only={"mode": tuple(GELUS)}
    ),
    "clip": Operation(lambda x, alpha, beta: x.clamp(alpha, beta), ("alpha", "beta"), moves=True),
    **_binary(NUMBERS, add=torch.add, sub=torch.sub, mul=torch.mul, maximum=torch.maximum),
    **_binary(FLOATS, real_div=torch.div),  # of integers: nowhere is said how the quotient is rounded
    **_binary(NUMBERS, equal=torch.eq, less=torch.lt, greater=torch.gt, greater_equal=torch.ge, less_equal=torch.le),
    **_binary(BOOL, logical_or=torch.logical_or),
    "select": Operation(lambda cond, a, b: torch.where(cond, a, b), (), ("a", "b"), NUMBERS | BOOL, moves=True),
    "cast": Operation(cast, ("dtype",), types=ANYTHING, only={"dtype": CASTS}),
    "reshape": _moving(reshape, "shape"),
    "expand_dims": _moving(expand_dims, "axes"),
    "squeeze": _moving(lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)), "axes"),
    "transpose": _moving(lambda x, perm: x.permute(tuple(perm)), "perm"),
    "slice_by_index": _moving(
        slice_by_index, "begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask"
    ),
    "concat": Operation(
        lambda values, axis, interleave=False: torch.cat(list(values), axis), ("axis", "interleave"), ("values",),
        ANYTHING, moves=True, only={"interleave": (False,)},
    ),
    "split": _moving(split, "axis", "num_splits", "split_sizes"),
    "tile": _moving(lambda x, reps: x.repeat(tuple(reps)), "reps"),
    # PyTorch orders the pixels of a square as MIL does.
    "pixel_shuffle": Operation(lambda x, upscale_factor: F.pixel_shuffle(x, upscale_factor), ("upscale_factor",),
                               moves=True),
    "pixel_unshuffle": Operation(lambda x, downscale_factor: F.pixel_unshuffle(x, downscale_factor),
                                 ("downscale_factor",), moves=True),
    "pad": Operation(constant_pad, ("pad", "mode", "constant_val"), types=FLOATS, moves=True,
                     only={"mode": ("constant",)}),
    "conv": Operation(conv, ("strides", "pad_type", "pad", "dilations", "groups"),
                      only={"pad_type": ("valid", "custom")}),
    "linear": Operation(linear),
    "avg_pool": Operation(
        avg_pool, ("kernel_sizes", "strides", "pad_type", "pad", "exclude_padding_from_average", "ceil_mode"),
        only={"pad_type": ("valid", "custom"), "ceil_mode": (False,)},
    ),
    "upsample_nearest_neighbor": Operation(upsample_nearest, ("scale_factor_height", "scale_factor_width"),
                                           moves=True),
    "matmul": Operation(matmul, ("transpose_x", "transpose_y"), ("x", "y"), NUMBERS),
    "einsum": Operation(lambda values, equation: torch.einsum(equation, *values), ("equation",), ("values",)),
    "reduce_sum": _reduced(Tensor.sum),
    "reduce_mean": Operation(_reduced(Tensor.mean).compute, ("axes", "keep_dims")),
    "reduce_max": _reduced(Tensor.amax),
    "reduce_argmax": Operation(reduce_argmax, ("axis", "keep_dims", "output_dtype"), types=NUMBERS),
    "softmax": Operation(softmax, ("axis",)),
    "layer_norm": Operation(layer_norm, ("axes", "epsilon")),
    "constexpr_affine_dequantize": Operation(affine_dequantize, ("axis",), ("quantized_data",), frozenset({"int8"})),
    # By one number or one for each index of some axes: from iOS 18.
    "constexpr_blockwise_shift_scale": Operation(lambda data, scale: scale * data, (), ("data",), frozenset({"int8"})),
    "constexpr_lut_to_dense": Operation(lut_to_dense, ("shape",), ("indices",), frozenset({"uint8"}), moves=True),
    "quantize": Operation(quantize, ("output_dtype",), ("input",)),
    "dequantize": Operation(lambda input, scale: scale * input, (), ("input",), frozenset({"int8"})),
}  # fmt: skip
