"""Operations on single elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from samx.runtimes.mil.operations.base import ANYTHING, BOOL, FLOATS, NUMBERS, Operation

CASTS = ("fp16", "fp32", "bool", "int8", "uint8", "int16", "uint16", "int32")


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Bring into [alpha, beta]."""
    return x.clamp(alpha, beta)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Compute the unit exactly."""
    return F.gelu(x)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take from a where cond holds, else from b."""
    return torch.where(cond, a, b)


def cast(x: Tensor, dtype: str) -> Tensor:
    """Change the type: towards zero into integers, which must hold the value; to bool what is not zero."""
    if dtype == "bool":
        return x != 0
    if dtype in FLOATS:
        return x.to(torch.float32)
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise ValueError(f"casts infinity or NaN to {dtype}")
    return x.to(torch.int64)


def _unary(types: frozenset[str], **functions: Callable[[Tensor], Tensor]) -> dict[str, Operation]:
    # PyTorch calls the argument otherwise.
    return {name: Operation(lambda x, f=function: f(x), types=types) for name, function in functions.items()}


def _binary(types: frozenset[str], **functions: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Operation]:
    return {
        name: Operation(lambda x, y, f=function: f(x, y), alike=("x", "y"), types=types)
        for name, function in functions.items()
    }


OPERATIONS: Mapping[str, Operation] = {
    **_unary(FLOATS, cos=torch.cos, sin=torch.sin, sigmoid=torch.sigmoid),
    **_unary(NUMBERS, abs=torch.abs),
    "relu": Operation(lambda x: F.relu(x), moves=True),
    "gelu": Operation(gelu, ("mode",), only={"mode": ("EXACT",)}),
    "clip": Operation(clip, ("alpha", "beta"), moves=True),
    **_binary(NUMBERS, add=torch.add, sub=torch.sub, mul=torch.mul),
    **_binary(FLOATS, real_div=torch.div),  # of integers: nowhere is said how the quotient is rounded
    **_binary(NUMBERS, equal=torch.eq, greater=torch.gt, greater_equal=torch.ge, less_equal=torch.le),
    **_binary(BOOL, logical_or=torch.logical_or),
    "select": Operation(select, alike=("a", "b"), types=NUMBERS | BOOL, moves=True),
    "cast": Operation(cast, ("dtype",), types=ANYTHING, only={"dtype": CASTS}),
}
