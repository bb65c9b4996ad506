"""Tensors of a MIL program in plain data, and whether a package describes those of its functions rightly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from samx.errors import ArtifactError

UNKNOWN = -1  # a size that only a call would fix
UNRANKED = (-2,)  # in the place of a shape: not even the number of sizes is known
# What functions take and return.
ARRAY_TYPES: Mapping[str, type[np.generic]] = {
    "fp16": np.float16, "fp32": np.float32, "int32": np.int32, "int16": np.int16, "uint16": np.uint16,
    "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip
# By the name of the description's type.
DESCRIBED_TYPES: Mapping[str, str] = {
    "FLOAT16": "fp16", "FLOAT32": "fp32", "DOUBLE": "fp64", "INT32": "int32", "INT8": "int8",
}  # fmt: skip


@dataclass(frozen=True)
class TensorType:
    """Describe a tensor; its type is in MIL's words: fp16, fp32, int32, bool, ..."""

    name: str
    shape: tuple[int, ...]  # with UNKNOWN where it is not fixed, or UNRANKED
    dtype: str
    constant: bool = False
    finite: bool = True  # also after rounding to float16; told of constants only

    @property
    def fixed(self) -> bool:
        """Whether every size is known before a call."""
        return min(self.shape, default=0) >= 0

    @property
    def rank(self) -> int:
        """The number of sizes; 0 where it is unknown."""
        return 0 if self.shape == UNRANKED else len(self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are fixed."""
        return tuple(size for size in self.shape if size >= 0)

    @property
    def elements(self) -> int:
        """How many numbers it holds; 0 where that is not fixed."""
        return prod(self.sizes) if self.fixed else 0

    @property
    def item_bytes(self) -> float:
        """Size of one number; a truth value takes a byte."""
        return int("".join(filter(str.isdigit, self.dtype)) or 8) / 8

    @property
    def bytes(self) -> int:
        """Size of all of them, packed."""
        return int(self.elements * self.item_bytes)

    @property
    def array_type(self) -> type[np.generic]:
        """The type of an array that holds it."""
        return ARRAY_TYPES[self.dtype]

    @property
    def size_words(self) -> str:
        """The shape, for a message."""
        if self.shape == UNRANKED:
            return "(?...)"
        return f"({', '.join('?' if size == UNKNOWN else str(size) for size in self.shape)})"

    def __str__(self) -> str:
        return f"{self.name} {self.size_words} {self.dtype}"


def tensor_type(var: Any, name: str | None = None) -> TensorType:
    """Describe coremltools' Var, or a function's input under the name that it is given by."""
    return TensorType(name or str(var.name), _shape(var.shape), _dtype(var.dtype))


def _shape(sizes: Iterable[Any]) -> tuple[int, ...]:
    """Read MIL's shape: a symbol is a size that is not fixed, one that begins with a star any number of sizes."""
    if any(str(size).startswith("*") for size in sizes):
        return UNRANKED
    return tuple(int(size) if isinstance(size, (int, np.integer)) else UNKNOWN for size in sizes)


def _dtype(builtin: Any) -> str:
    from coremltools.converters.mil.mil import types

    try:
        return str(types.builtin_to_string(builtin))
    except KeyError:
        return "list"  # and whatever else is no tensor


def check_described(features: Iterable[Any], found: Iterable[TensorType], what: str) -> None:
    """Compare names, shapes and types of a package's description with the tensors that there are.

    Raises: ArtifactError.
    """
    described = {feature.name: _described(feature) for feature in features}
    real = {tensor.name: tensor for tensor in found}
    wrong = [str(described.get(name) or f"no {name}") for name, tensor in real.items() if not _same(described, tensor)]
    wrong += [name for name in described if name not in real]
    if wrong:
        raise ArtifactError(
            f"the {what} are described wrongly", found="; ".join(wrong), expected="; ".join(map(str, real.values())),
            fix="Export it again.",
        )  # fmt: skip


def _same(described: Mapping[str, TensorType], real: TensorType) -> bool:
    said = described.get(real.name)
    if said is None or said.dtype != real.dtype:
        return False
    # What is not fixed is described by a typical shape; an output may go without.
    return said.shape == real.shape or not real.fixed or not said.shape


def _described(feature: Any) -> TensorType:
    if feature.type.WhichOneof("Type") == "imageType":  # the program gets its levels, channels first
        image = feature.type.imageType
        kind = "fp32" if image.colorSpace == image.RGB else image.ColorSpace.Name(image.colorSpace)
        return TensorType(feature.name, (1, 3, image.height, image.width), kind)
    if feature.type.WhichOneof("Type") != "multiArrayType":
        return TensorType(feature.name, (UNKNOWN,), str(feature.type.WhichOneof("Type")))
    array = feature.type.multiArrayType
    kind = array.ArrayDataType.Name(array.dataType)
    return TensorType(feature.name, tuple(array.shape), DESCRIBED_TYPES.get(kind, kind))
