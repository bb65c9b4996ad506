"""Operations along axes: sums, extremes, softmax, norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from samx.formats.coreml.storage import FLOATS
from samx.runtimes.mil.operations.kinds import NUMBERS, Operation
from samx.runtimes.mil.operations.steady import filled

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keep)
    return x


REDUCTIONS: Mapping[str, tuple[Reduction, frozenset[str]]] = {
    "reduce_sum": (torch.sum, NUMBERS),
    "reduce_mean": (torch.mean, FLOATS),  # of integers: nowhere is said how the quotient is rounded
    "reduce_max": (torch.amax, NUMBERS),
    "reduce_min": (torch.amin, NUMBERS),
    "reduce_prod": (_prod, NUMBERS),
    "reduce_sum_square": (lambda x, axes, keep: torch.sum(x * x, axes, keep), NUMBERS),
    "reduce_l1_norm": (lambda x, axes, keep: torch.sum(x.abs(), axes, keep), NUMBERS),
    "reduce_l2_norm": (lambda x, axes, keep: torch.sum(x * x, axes, keep).sqrt(), FLOATS),
    "reduce_log_sum_exp": (torch.logsumexp, FLOATS),
}


def reduction(reduce: Reduction) -> Callable[..., Tensor]:
    """Make a reduction over some axes, or all."""

    def compute(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
        chosen = range(x.ndim) if axes is None else axes
        return reduce(x, tuple(chosen), keep_dims)

    return compute


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Give the index of the largest value, of equal ones the first."""
    return torch.argmax(x, axis, keep_dims)


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Give the index of the smallest value, of equal ones the first."""
    return torch.argmin(x, axis, keep_dims)


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


ARGUMENTS = ("axis", "keep_dims", "output_dtype")
OPERATIONS: Mapping[str, Operation] = {
    **{
        name: Operation(reduction(reduce), ("axes", "keep_dims"), types=types)
        for name, (reduce, types) in REDUCTIONS.items()
    },
    "reduce_argmax": Operation(reduce_argmax, ARGUMENTS, types=NUMBERS, gives=("output_dtype", "int32")),
    "reduce_argmin": Operation(reduce_argmin, ARGUMENTS, types=NUMBERS, gives=("output_dtype", "int32")),
    "softmax": Operation(softmax, ("axis",)),
    "layer_norm": Operation(layer_norm, ("axes", "epsilon")),
}
