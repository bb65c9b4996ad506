"""Operations on single elements.

Source of every operation's meaning, here and beside: the definitions in coremltools (mil/ops/defs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from samx.formats.coreml.storage import FLOATS
from samx.runtimes.mil.operations.kinds import ANYTHING, BOOL, INT32, NUMBERS, Operation

GELU_MODES = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
CASTS = ("fp16", "fp32", "bool", "int8", "uint8", "int16", "uint16", "int32")


def rsqrt(x: Tensor, epsilon: float) -> Tensor:
    """Add epsilon, take the root, invert."""
    return torch.rsqrt(x + epsilon)


def log(x: Tensor, epsilon: float) -> Tensor:
    """Add epsilon, take the logarithm."""
    return torch.log(x + epsilon)


def inverse(x: Tensor, epsilon: float) -> Tensor:
    """Add epsilon, invert."""
    return torch.reciprocal(x + epsilon)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Compute the unit exactly, or by one of two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Bring into [alpha, beta]."""
    return x.clamp(alpha, beta)


def threshold(x: Tensor, alpha: float) -> Tensor:
    """Lift to alpha."""
    return x.clamp(min=alpha)


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """Scale what is negative by alpha."""
    return torch.where(x >= 0, x, alpha * x)


def elu(x: Tensor, alpha: float) -> Tensor:
    """Bend what is negative towards -alpha."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Scale and shift."""
    return alpha * x + beta


def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Scale and shift, bring into [0, 1]."""
    return (alpha * x + beta).clamp(0, 1)


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Scale before and after the hyperbolic tangent."""
    return alpha * torch.tanh(beta * x)


def softplus(x: Tensor) -> Tensor:
    """Compute log(1 + e^x) without overflow."""
    return torch.logaddexp(x, torch.zeros_like(x))


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


def _named_x(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x)  # PyTorch calls it otherwise


def _named_x_and_y(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: function(x, y)


def _unary(*names: str, types: frozenset[str] = FLOATS, moves: bool = False) -> dict[str, Operation]:
    """Name what torch calls the same."""
    return {name: Operation(_named_x(getattr(torch, name)), types=types, moves=moves) for name in names}


def _binary(
    types: frozenset[str] = NUMBERS, gives: str = "x", moves: bool = False, **functions: Callable[..., Tensor]
) -> dict[str, Operation]:
    return {
        name: Operation(_named_x_and_y(function), alike=("x", "y"), types=types, gives=(gives,), moves=moves)
        for name, function in functions.items()
    }


def _scaled(
    compute: Callable[..., Tensor], *names: str, moves: bool = False, types: frozenset[str] = FLOATS
) -> Operation:
    return Operation(compute, values=names, moves=moves, types=types)


OPERATIONS: Mapping[str, Operation] = {
    **_unary("acos", "asin", "atan", "atanh", "cos", "cosh", "erf", "exp", "exp2", "sigmoid", "sin", "sinh", "sqrt"),
    **_unary("tan", "tanh", "ceil", "floor", "round"),
    **_unary("abs", "sign", "square", types=NUMBERS),
    **_unary("relu", moves=True),
    "relu6": Operation(_named_x(F.relu6)),
    "silu": Operation(_named_x(F.silu)),
    "softplus": Operation(softplus),
    "softsign": Operation(_named_x(F.softsign)),
    "gelu": Operation(gelu, values=("mode",), only={"mode": GELU_MODES}),
    "rsqrt": _scaled(rsqrt, "epsilon"),
    "log": _scaled(log, "epsilon"),
    "inverse": _scaled(inverse, "epsilon"),
    "clip": _scaled(clip, "alpha", "beta", moves=True),
    "threshold": _scaled(threshold, "alpha", moves=True, types=NUMBERS),
    "leaky_relu": _scaled(leaky_relu, "alpha"),
    "elu": _scaled(elu, "alpha"),
    "linear_activation": _scaled(linear_activation, "alpha", "beta"),
    "sigmoid_hard": _scaled(sigmoid_hard, "alpha", "beta"),
    "scaled_tanh": _scaled(scaled_tanh, "alpha", "beta"),
    **_binary(add=torch.add, sub=torch.sub, mul=torch.mul, mod=torch.remainder),
    **_binary(FLOATS, real_div=torch.div, pow=torch.pow),  # of integers: nowhere is said how the result is rounded
    **_binary(INT32, floor_div=torch.floor_divide),  # of floats: libraries differ where the quotient is rounded up
    **_binary(moves=True, maximum=torch.maximum, minimum=torch.minimum),
    **_binary(gives="bool", equal=torch.eq, not_equal=torch.ne, greater=torch.gt, greater_equal=torch.ge),
    **_binary(gives="bool", less=torch.lt, less_equal=torch.le),
    **_binary(BOOL, logical_and=torch.logical_and, logical_or=torch.logical_or, logical_xor=torch.logical_xor),
    "logical_not": Operation(_named_x(torch.logical_not), types=BOOL),
    "select": Operation(select, alike=("a", "b"), types=NUMBERS | BOOL, gives=("a",), moves=True),
    "cast": Operation(cast, values=("dtype",), types=ANYTHING, gives=("dtype",), only={"dtype": CASTS}),
    "identity": Operation(lambda x: x, types=ANYTHING, moves=True),
}
