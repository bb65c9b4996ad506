"""Evaluate a function of a MIL program in PyTorch: float32 arithmetic, stored types kept to after every operation.

This computes what the program says. It is not the Neural Engine's own arithmetic, which nobody has published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samx.errors import ArtifactError, InputError
from samx.formats.coreml.program import Program, operations
from samx.formats.coreml.tensors import ARRAY_TYPES, TensorType, tensor_type
from samx.runtimes.mil.operations import FLOATS, OPERATIONS, Operation, held, stored

SHOWN = 3  # unknown operations that an error names
ARITHMETIC = (
    "float32, rounded to the program's storage types after each operation; not the Neural Engine's own arithmetic"
)


class UnknownOperationError(ArtifactError):
    """Report operations that the evaluator does not compute, or not in this way."""


def words(op: Any) -> str:
    """Name an operation."""
    return f"{op.op_type} '{op.name}'"


def check_known(ops: Iterable[Any], where: str) -> None:
    """Refuse a function with an operation that has no entry in the table, nested blocks included.

    Raises: UnknownOperationError.
    """
    unknown = [words(op) for op in ops if op.op_type != "const" and op.op_type not in OPERATIONS]
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise UnknownOperationError(
            f"the MIL evaluator does not know an operation of {where}", found=", ".join(unknown[:SHOWN]) + more,
            fix="Run the package on a Mac, or export it without this operation.",
        )  # fmt: skip


def check_parameters(operation: Operation, op: Any, parameters: Mapping[str, Any], where: str) -> None:
    """Refuse a way of computing that the evaluator does not know.

    Raises: UnknownOperationError.
    """
    for name, known in operation.only.items():
        if name in parameters and parameters[name] not in known:
            raise UnknownOperationError(
                f"the MIL evaluator does not know a way of {words(op)} in {where}",
                found=f"{name} = {parameters[name]!r}", expected=" or ".join(map(str, known)),
            )  # fmt: skip


def check_types(operation: Operation, op: Any, where: str) -> None:
    """Refuse types that the evaluator does not know for an operation.

    Raises: ArtifactError.
    """
    found = {name: _types(op.inputs[name]) for name in operation.alike if op.inputs.get(name) is not None}
    kinds = {dtype for types in found.values() for dtype in types}
    if len(kinds) != 1 or not kinds <= operation.types:
        raise ArtifactError(
            f"{words(op)} in {where} has inputs of types that do not go together",
            found="; ".join(f"{name} {', '.join(types)}" for name, types in found.items()),
            expected=f"{' and '.join(operation.alike)} alike, of {', '.join(sorted(operation.types))}",
        )  # fmt: skip


def _types(given: Any) -> list[str]:
    return [tensor_type(var).dtype for var in (given if isinstance(given, (list, tuple)) else [given])]


Values = dict[int, Tensor]  # by the identity of coremltools' Var


@dataclass(frozen=True)
class Step:
    """Compute one operation."""

    words: str  # name it in errors
    operation: Operation
    arguments: Mapping[str, int | list[int]]  # a value, or several that come as one argument
    parameters: Mapping[str, Any]
    result: int
    declared: TensorType

    @property
    def read(self) -> set[int]:
        """Name the values that it takes."""
        return {one for some in self.arguments.values() for one in (some if isinstance(some, list) else [some])}

    def run(self, values: Values) -> None:
        """Take the arguments and add the result.

        Raises: ArtifactError when there is no result, or not the declared one.
        """
        try:
            arguments = {
                name: [values[one] for one in some] if isinstance(some, list) else values[some]
                for name, some in self.arguments.items()
            }
            found = self.operation.compute(**arguments, **self.parameters)
            if tuple(found.shape) != self.declared.shape:
                raise ValueError(f"it gives {tuple(found.shape)}, declared is {self.declared}")
            as_it_is = self.operation.moves and found.is_floating_point() and self.declared.dtype in FLOATS
            values[self.result] = found if as_it_is else stored(found, self.declared.dtype)
        except (ValueError, TypeError, RuntimeError, IndexError) as cause:
            raise ArtifactError(f"cannot evaluate {self.words}", found=cause) from cause


class Evaluator:
    """Call one function of a program."""

    @torch.inference_mode()
    def __init__(self, program: Program, name: str) -> None:
        """Make every operation a step; compute at once what depends on constants alone.

        Raises: ArtifactError for shapes that are not fixed and for types that do not fit; UnknownOperationError.
        """
        self.inputs, self.outputs, function = program.inputs(name), program.outputs(name), program.function(name)
        self._where = f"function '{name}' of {program.where}"
        check_known(operations(function), self._where)
        for tensor in self.inputs:
            self._check_input(tensor)
        self.operations = 0  # without constants
        self._constants: Values = {}
        self._steps: list[Step] = []
        self._given = [id(var) for var in function.inputs.values()]
        self._there = set(self._given)
        for op in function.operations:
            if op.op_type != "const":  # becomes a value where an operation wants it as one
                self._add(op)
        self._returned = [self._value(var, "its outputs") for var in function.outputs]
        self._done_with = self._plan_release()

    @torch.inference_mode()
    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute the outputs. Shapes and types: exactly those of `inputs` -> `outputs`.

        Raises: InputError for a feed that does not fit; ArtifactError naming the operation that cannot be computed.
        """
        if set(feed) != {tensor.name for tensor in self.inputs}:
            expected = ", ".join(tensor.name for tensor in self.inputs)
            raise InputError(f"wrong inputs for {self._where}", found=", ".join(sorted(feed)), expected=expected)
        taken = [self._taken(feed[tensor.name], tensor) for tensor in self.inputs]
        values = {**self._constants, **dict(zip(self._given, taken, strict=True))}
        self._run(values)
        found = zip(self.outputs, self._returned, strict=True)
        # What is returned shares no memory with what is kept.
        return {tensor.name: np.array(values[one].numpy(), tensor.array_type, order="C") for tensor, one in found}

    def _run(self, values: Values) -> None:
        for step, done_with in zip(self._steps, self._done_with, strict=True):
            step.run(values)
            for one in done_with:
                del values[one]

    def _taken(self, array: NDArray[Any], tensor: TensorType) -> Tensor:
        if array.shape != tensor.shape or array.dtype != tensor.array_type:
            raise InputError(
                f"an input does not fit {self._where}", found=f"{tensor.name} {array.shape} {array.dtype}",
                expected=f"{tensor.shape} {np.dtype(tensor.array_type)}",
            )  # fmt: skip
        return held(array, tensor.dtype)

    def _add(self, op: Any) -> None:
        self.operations += 1
        several = len(op.outputs) > 1
        for part, result in enumerate(op.outputs):
            step = self._step(op, result, {"part": part} if several else {})
            self._there.add(step.result)
            if step.read <= self._constants.keys():
                step.run(self._constants)
            else:
                self._steps.append(step)

    def _step(self, op: Any, result: Any, part: Mapping[str, int]) -> Step:
        operation = OPERATIONS[op.op_type]
        inputs = {name: given for name, given in op.inputs.items() if given is not None}
        parameters = {name: self._parameter(inputs[name], op) for name in operation.values if name in inputs}
        check_parameters(operation, op, parameters, self._where)
        check_types(operation, op, self._where)
        arguments = {name: self._argument(inputs[name], op) for name in inputs if name not in operation.values}
        declared = self._fixed(tensor_type(result), words(op))
        parameters.update(part)
        return Step(f"{words(op)} in {self._where}", operation, arguments, parameters, id(result), declared)

    def _parameter(self, var: Any, op: Any) -> Any:
        """Return a constant as a plain Python value."""
        if _is_constant(var):
            return var.val.tolist() if isinstance(var.val, (np.ndarray, np.generic)) else var.val
        value = self._constants.get(self._value(var, words(op)))
        if value is None:
            raise ArtifactError(f"{words(op)} in {self._where} depends on a value of the call", found=str(var.name))
        return value.tolist()

    def _argument(self, given: Any, op: Any) -> int | list[int]:
        several = isinstance(given, (list, tuple))
        return [self._value(var, words(op)) for var in given] if several else self._value(given, words(op))

    def _value(self, var: Any, reader: str) -> int:
        if _is_constant(var):
            if id(var) not in self._constants:
                self._constants[id(var)] = self._constant(var)
        elif id(var) not in self._there:
            raise ArtifactError(f"{reader} in {self._where} reads what nothing before it gives", found=str(var.name))
        return id(var)

    def _constant(self, var: Any) -> Tensor:
        declared = self._fixed(tensor_type(var), f"const '{var.name}'")
        try:
            return held(var.val, declared.dtype)
        except (ValueError, TypeError) as cause:
            raise ArtifactError(f"const '{var.name}' in {self._where} cannot be used", found=cause) from cause

    def _check_input(self, declared: TensorType) -> None:
        if self._fixed(declared, "an input").dtype not in ARRAY_TYPES:
            raise ArtifactError(f"an input of {self._where} has a type that is not evaluated", found=declared)

    def _fixed(self, declared: TensorType, what: str) -> TensorType:
        if not declared.fixed:
            raise ArtifactError(
                f"{what} in {self._where} has no fixed shape", found=declared, expected="fixed shapes",
                fix="Export one function for each number of points.",
            )  # fmt: skip
        return declared

    def _plan_release(self) -> list[set[int]]:
        """List what is done with after each step; drop constants that were folded into others."""
        needed, done_with = set(self._returned), []
        for step in reversed(self._steps):
            own = {*step.read, step.result}
            done_with.append(own - needed - self._constants.keys())
            needed |= own
        self._constants = {one: value for one, value in self._constants.items() if one in needed}
        return done_with[::-1]


def _is_constant(var: Any) -> bool:
    return var.op is not None and var.op.op_type == "const"


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads for a while; None: with one.

    Operations are small: two threads gain an eighth, and where other processes compute too, wait for each other for
    minutes.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or 1)
        yield
    finally:
        torch.set_num_threads(before)
