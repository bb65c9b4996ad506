"""A MIL function as plain data: one step an operation, with the shapes, types and constants that rules ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.formats.coreml.program import operations
from samx.formats.coreml.tensors import TensorType, tensor_type

PARAMETER_ELEMENTS = 64  # a constant of at most so many says how an operation works: axes, flags, offsets
LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Step:
    """Describe an operation that computes something."""

    name: str
    operator: str
    inputs: Mapping[str, tuple[TensorType, ...]]
    outputs: tuple[TensorType, ...]
    parameters: Mapping[str, NDArray[Any]]  # the small constants among its inputs

    @property
    def fed(self) -> tuple[TensorType, ...]:
        """The inputs that are computed."""
        return tuple(tensor for group in self.inputs.values() for tensor in group if not tensor.constant)

    @property
    def constants(self) -> tuple[TensorType, ...]:
        """The inputs that are stored."""
        return tuple(tensor for group in self.inputs.values() for tensor in group if tensor.constant)

    @property
    def flowing(self) -> tuple[TensorType, ...]:
        """Everything that goes in or comes out, constants apart."""
        return (*self.fed, *self.outputs)

    def first(self, name: str) -> TensorType | None:
        """Return the first tensor of an input."""
        group = self.inputs.get(name, ())
        return group[0] if group else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a parameter as integers; none where it is computed or left out."""
        return tuple(int(number) for number in self.parameters.get(name, np.empty(0)).reshape(-1))


def steps_of(function: Any) -> list[Step]:
    """List what a MIL function computes, in its order; constants and the unpacking of weights are no steps."""
    return [
        _step(op) for op in operations(function) if op.op_type != "const" and not op.op_type.startswith("constexpr_")
    ]


def tensors_of(function: Any) -> list[TensorType]:
    """List every value of a MIL function: inputs, constants and what is computed."""
    variables = [*function.inputs.values(), *(out for op in operations(function) for out in op.outputs)]
    return [_tensor(variable) for variable in variables]


def multiply_adds(step: Step) -> int:
    """Count the multiply-adds of a convolution or product from its shapes; 0 for all else, and where none is fixed."""
    out, weight = step.outputs[0].elements, step.first("weight")
    if not all(tensor.fixed for group in step.inputs.values() for tensor in group):
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


def _step(operation: Any) -> Step:
    groups = {name: _group(value) for name, value in operation.inputs.items() if value is not None}
    inputs = {name: tuple(map(_tensor, group)) for name, group in groups.items()}
    parameters = {name: np.asarray(group[0].val) for name, group in groups.items() if _is_parameter(group)}
    return Step(operation.name, operation.op_type, inputs, tuple(map(_tensor, operation.outputs)), parameters)


def _group(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_parameter(group: tuple[Any, ...]) -> bool:
    value = group[0].val if len(group) == 1 else None
    return value is not None and np.size(value) <= PARAMETER_ELEMENTS


def _tensor(variable: Any) -> TensorType:
    constant = bool(variable.is_descendant_of_const)
    return replace(tensor_type(variable), constant=constant, finite=not constant or _finite(variable.val))


def _finite(value: Any) -> bool:
    numbers = np.asarray(value)
    if numbers.dtype.kind != "f":
        return True
    return bool(np.all(np.abs(numbers) <= LARGEST_FLOAT16))  # NaN is not below anything
