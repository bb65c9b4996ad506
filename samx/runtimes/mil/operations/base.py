"""What operations share: how MIL's types are held, what the evaluator knows of an operation, one order of sums.

Both float types are held in float32, a stored fp16 value rounded to what float16 can hold (beyond its range: infinity,
as a real store would give). All integers are held in int32, within the range of their own type.
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

Result = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Operation:
    """Describe how one MIL operation is computed from keyword arguments named as in MIL."""

    compute: Callable[..., Result]
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
