"""Shape and type of one tensor of a MIL program, in plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

UNKNOWN = -1  # a size that only a call would fix
# What can cross the border of a function.
ARRAY_TYPES: Mapping[str, type[np.generic]] = {
    "fp16": np.float16, "fp32": np.float32, "int32": np.int32, "int16": np.int16, "uint16": np.uint16,
    "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class TensorType:
    """Describe a tensor; its type is in MIL's words: fp16, fp32, int32, bool, ..."""

    name: str
    shape: tuple[int, ...]  # with UNKNOWN where it is not fixed
    dtype: str

    @property
    def fixed(self) -> bool:
        """Whether every size is known before a call."""
        return UNKNOWN not in self.shape

    @property
    def array_type(self) -> type[np.generic]:
        """The type of an array that holds it."""
        return ARRAY_TYPES[self.dtype]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size == UNKNOWN else str(size) for size in self.shape)
        return f"{self.name} ({sizes}) {self.dtype}"


def tensor_type(var: Any, name: str | None = None) -> TensorType:
    """Describe coremltools' Var, or a function's input under the name that it is given by."""
    from coremltools.converters.mil.mil import types

    sizes = tuple(int(size) if _is_number(size) else UNKNOWN for size in var.shape)
    return TensorType(name or str(var.name), sizes, str(types.builtin_to_string(var.dtype)))


def _is_number(size: Any) -> bool:
    """Tell a number from a symbol: a variadic symbol, which stands for several sizes, is none either."""
    return isinstance(size, int) or (hasattr(size, "dtype") and not hasattr(size, "free_symbols"))
