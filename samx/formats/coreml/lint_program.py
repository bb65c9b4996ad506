"""A MIL function as plain data: one step an operation, with the shapes, types and constants that rules ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.formats.coreml.library import open_coremltools

PURPOSE = "the lint of a Core ML program"
NAMES: Mapping[str, str] = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}  # MIL's own names, else the same
PARAMETER_ELEMENTS = 64  # a constant of at most so many says how an operation works: axes, flags, offsets
LARGEST_FLOAT16 = 65504.0

Shape = tuple[int | None, ...]  # None is a size that is not fixed


@dataclass(frozen=True)
class Tensor:
    """Describe a value of the program."""

    name: str
    shape: Shape | None  # None is an unknown rank
    dtype: str
    constant: bool = False
    finite: bool = True  # also after rounding to float16; told of constants only

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are fixed."""
        return tuple(size for size in self.shape or () if size is not None)

    @property
    def is_fixed(self) -> bool:
        """Whether every size is known."""
        return self.shape is not None and None not in self.shape

    @property
    def words(self) -> str:
        """The shape, for a message."""
        return "(?...)" if self.shape is None else f"({', '.join('?' if d is None else str(d) for d in self.shape)})"

    @property
    def elements(self) -> int:
        """How many numbers it holds; 0 where that is not fixed."""
        return prod(self.sizes) if self.is_fixed else 0

    @property
    def item_bytes(self) -> float:
        """Size of one number; a truth value takes a byte."""
        bits = "".join(filter(str.isdigit, self.dtype))
        return int(bits or 8) / 8

    @property
    def bytes(self) -> int:
        """Size of all of them, packed."""
        return int(self.elements * self.item_bytes)


@dataclass(frozen=True)
class Step:
    """Describe an operation that computes something."""

    name: str
    operator: str
    inputs: Mapping[str, tuple[Tensor, ...]]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, NDArray[Any]]  # the small constants among its inputs

    @property
    def fed(self) -> tuple[Tensor, ...]:
        """The inputs that are computed."""
        return tuple(tensor for group in self.inputs.values() for tensor in group if not tensor.constant)

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """The inputs that are stored."""
        return tuple(tensor for group in self.inputs.values() for tensor in group if tensor.constant)

    @property
    def flowing(self) -> tuple[Tensor, ...]:
        """Everything that goes in or comes out, constants apart."""
        return (*self.fed, *self.outputs)

    def first(self, name: str) -> Tensor | None:
        """Give the first tensor of an input."""
        group = self.inputs.get(name, ())
        return group[0] if group else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """Give a parameter as integers; none where it is computed or left out."""
        return tuple(int(number) for number in self.parameters.get(name, np.empty(0)).reshape(-1))


def steps_of(function: Any) -> list[Step]:
    """List what a MIL function computes, in its order; constants and the unpacking of weights are no steps."""
    types = open_coremltools(PURPOSE).converters.mil.mil.types
    return [_step(operation, types) for operation in _operations(function) if not _is_constant(operation)]


def tensors_of(function: Any) -> list[Tensor]:
    """List every value of a MIL function: inputs, constants and what is computed."""
    types = open_coremltools(PURPOSE).converters.mil.mil.types
    variables = [*function.inputs.values(), *(out for operation in _operations(function) for out in operation.outputs)]
    return [_tensor(variable, types) for variable in variables]


def multiply_adds(step: Step) -> int:
    """Count the multiply-adds of a convolution or product from its shapes; 0 for all else, and where none is fixed."""
    out, weight = step.outputs[0].elements, step.first("weight")
    if not all(tensor.is_fixed for group in step.inputs.values() for tensor in group):
        return 0
    if step.operator == "conv" and weight is not None:
        return out * prod(weight.sizes[1:])
    if step.operator == "conv_transpose" and weight is not None:
        (x,) = step.inputs["x"]
        return x.elements * prod(weight.sizes[1:])
    if step.operator == "linear" and weight is not None:
        return out * prod(weight.sizes[-1:])
    if step.operator == "matmul":
        return out * _contracted(step)
    return _einsum_multiply_adds(step) if step.operator == "einsum" else 0


def _contracted(step: Step) -> int:
    (x,) = step.inputs["x"]
    transposed = bool(step.parameters.get("transpose_x", np.False_))
    return x.sizes[-2:][0] if transposed else x.sizes[-1]


def _einsum_multiply_adds(step: Step) -> int:
    equation = str(step.parameters["equation"].reshape(-1)[0])
    labels = [letter for term in equation.split("->")[0].split(",") for letter in term.strip()]
    sizes = [size for tensor in step.inputs["values"] for size in tensor.sizes]
    return prod(dict(zip(labels, sizes, strict=False)).values())


def _operations(function: Any) -> Iterator[Any]:
    for operation in function.operations:
        yield operation
        for block in operation.blocks:
            yield from _operations(block)


def _is_constant(operation: Any) -> bool:
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def _step(operation: Any, types: Any) -> Step:
    groups = {name: _group(value) for name, value in operation.inputs.items() if value is not None}
    inputs = {name: tuple(_tensor(variable, types) for variable in group) for name, group in groups.items()}
    parameters = {name: np.asarray(group[0].val) for name, group in groups.items() if _is_parameter(group)}
    outputs = tuple(_tensor(variable, types) for variable in operation.outputs)
    return Step(operation.name, operation.op_type, inputs, outputs, parameters)


def _group(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_parameter(group: tuple[Any, ...]) -> bool:
    value = group[0].val if len(group) == 1 else None
    return value is not None and np.size(value) <= PARAMETER_ELEMENTS


def _tensor(variable: Any, types: Any) -> Tensor:
    constant = bool(variable.is_descendant_of_const)
    finite = not constant or _finite(variable.val)
    return Tensor(variable.name, _shape(variable.shape), _dtype(variable.dtype, types), constant, finite)


def _shape(sizes: tuple[Any, ...]) -> Shape | None:
    """Read MIL's shape: a symbol is a size that is not fixed, one that begins with a star any number of sizes."""
    if any(str(size).startswith("*") for size in sizes):
        return None
    return tuple(int(size) if isinstance(size, (int, np.integer)) else None for size in sizes)


def _dtype(builtin: Any, types: Any) -> str:
    try:
        name = str(types.builtin_to_string(builtin))
    except KeyError:
        return "list"  # and whatever else is no tensor
    return NAMES.get(name, name)


def _finite(value: Any) -> bool:
    numbers = np.asarray(value)
    if numbers.dtype.kind != "f":
        return True
    return bool(np.all(np.abs(numbers) <= LARGEST_FLOAT16))  # NaN is not below anything
