"""How the types of MIL are held while a program is evaluated: wide while computing, narrow where a value is stored.

Both float types are held in float32, a stored fp16 value rounded to what float16 can hold (beyond its range: infinity,
as a real store would give). All integers are held in int32, within the range of their own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samx.formats.coreml.tensor_type import ARRAY_TYPES

FLOATS = frozenset({"fp16", "fp32"})
RANGES: Mapping[str, tuple[int, int]] = {
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (1, 2, 3, 4, 6, 8, 16)},
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (4, 8, 16, 32)},
}
TYPES = FLOATS | {"bool", *RANGES}


def holder(dtype: str) -> torch.dtype:
    """Give the type that holds values of a MIL type.

    Raises: ValueError for a type that the evaluator does not have.
    """
    if dtype not in TYPES:
        raise ValueError(f"values of type {dtype} are not evaluated")
    return torch.float32 if dtype in FLOATS else torch.bool if dtype == "bool" else torch.int32


def held(value: Any, dtype: str) -> Tensor:
    """Take an array or a number of a MIL type. Never shares memory with it."""
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
    if dtype in RANGES:
        _check_range(result, dtype)
    return result.to(holder(dtype))


def given(value: Tensor, dtype: str) -> NDArray[Any]:
    """Give an array that shares no memory with what the evaluator keeps."""
    return np.array(value.numpy(), dtype=ARRAY_TYPES[dtype], order="C")


def _check_range(result: Tensor, dtype: str) -> None:
    low, high = RANGES[dtype]
    if result.numel() and not low <= int(result.min()) <= int(result.max()) <= high:
        raise ValueError(f"gives {int(result.min())} to {int(result.max())}, which {dtype} does not hold")
