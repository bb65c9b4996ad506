"""What the evaluator must know of an operation beside how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from samx.formats.coreml.storage import FLOATS, TYPES

Result = Tensor | Sequence[Tensor]
INT32 = frozenset({"int32"})
NUMBERS = FLOATS | INT32
BOOL = frozenset({"bool"})
ANYTHING = TYPES


@dataclass(frozen=True)
class Operation:
    """Say how one MIL operation is computed from keyword arguments named as in MIL."""

    compute: Callable[..., Result]
    # Inputs that must be known before a call; they come as plain Python values, all others as tensors.
    values: tuple[str, ...] = ()
    # Inputs that share one type, and the types that this may be.
    alike: tuple[str, ...] = ("x",)
    types: frozenset[str] = FLOATS
    # The result's type: a type's name, or an input that has it or (for a value) names it. Of several inputs, the first
    # that is no constant.
    gives: tuple[str, ...] = ("x",)
    mixes: bool = False  # a constant among them may be of another type
    moves: bool = False  # only gives back values that it was given, so that there is nothing to round
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # the values that are known of an input
