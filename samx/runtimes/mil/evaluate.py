"""Evaluate a function of a MIL program in PyTorch: float32 arithmetic, stored types kept to after every operation.

This computes what the program says. It is not the Neural Engine's own arithmetic, which nobody has published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samx.errors import ArtifactError, InputError
from samx.formats.coreml.program import Program, operations
from samx.formats.coreml.tensors import ARRAY_TYPES, TensorType, tensor_type
from samx.runtimes.mil.checks import check_known, check_parameters, check_types, words
from samx.runtimes.mil.operations import OPERATIONS
from samx.runtimes.mil.operations.base import FLOATS, Operation, Result, held, stored

ARITHMETIC = (
    "float32, rounded to the program's storage types after each operation; not the Neural Engine's own arithmetic"
)


Place = int | list[int]  # of one value, or of several that come as one argument
Values = list[Any]  # tensors, and None where there is none yet or no more


@dataclass(frozen=True)
class Step:
    """Compute one operation."""

    words: str  # name it in errors
    operation: Operation
    arguments: Mapping[str, Place]
    parameters: Mapping[str, Any]
    results: tuple[tuple[int, TensorType], ...]
    done_with: list[int] = field(default_factory=list)  # what nobody needs afterwards

    @property
    def places(self) -> list[int]:
        """Where the arguments lie."""
        return [place for some in self.arguments.values() for place in (some if isinstance(some, list) else [some])]

    def run(self, values: Values) -> None:
        """Take the arguments from their places, put the results into theirs, clear what is done with.

        Raises: ArtifactError when there is no result, or not the declared one.
        """
        try:
            arguments = {name: _at(values, place) for name, place in self.arguments.items()}
            computed = self.operation.compute(**arguments, **self.parameters)
            self._put(values, computed)
        except (ValueError, TypeError, RuntimeError, IndexError) as cause:
            raise ArtifactError(f"cannot evaluate {self.words}", found=cause) from cause
        for place in self.done_with:
            values[place] = None

    def _put(self, values: Values, computed: Result) -> None:
        parts = [computed] if isinstance(computed, Tensor) else computed
        for part, (place, declared) in zip(parts, self.results, strict=True):
            if tuple(part.shape) != declared.shape:
                raise ValueError(f"it gives {tuple(part.shape)}, declared is {declared}")
            as_it_is = self.operation.moves and part.is_floating_point() and declared.dtype in FLOATS
            values[place] = part if as_it_is else stored(part, declared.dtype)


def _at(values: Values, place: Place) -> Any:
    return [values[one] for one in place] if isinstance(place, list) else values[place]


class Evaluator:
    """Call one function of a program."""

    def __init__(self, program: Program, function: str) -> None:
        """Compile the function.

        Raises: ArtifactError for shapes that are not fixed and for types that do not fit; UnknownOperationError.
        """
        self.inputs, self.outputs = program.inputs(function), program.outputs(function)
        self._where = f"function '{function}' of {program.where}"
        with torch.inference_mode():
            self._compiled = _Compiler(program, function, self._where)

    @property
    def operations(self) -> int:
        """Count the operations of the function, without constants."""
        return self._compiled.operations

    @torch.inference_mode()
    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute the outputs. Shapes and types: exactly those of `inputs` -> `outputs`.

        Raises: InputError for a feed that does not fit; ArtifactError naming the operation that cannot be computed.
        """
        if set(feed) != {tensor.name for tensor in self.inputs}:
            expected = ", ".join(tensor.name for tensor in self.inputs)
            raise InputError(f"wrong inputs for {self._where}", found=", ".join(sorted(feed)), expected=expected)
        compiled = self._compiled
        values = list(compiled.values)
        for tensor, place in zip(self.inputs, compiled.inputs, strict=True):
            values[place] = self._taken(feed[tensor.name], tensor)
        for step in compiled.steps:
            step.run(values)
        found = zip(self.outputs, compiled.outputs, strict=True)
        # What is returned shares no memory with what is kept.
        return {tensor.name: np.array(values[at].numpy(), tensor.array_type, order="C") for tensor, at in found}

    def _taken(self, array: NDArray[Any], tensor: TensorType) -> Tensor:
        if array.shape != tensor.shape or array.dtype != tensor.array_type:
            raise InputError(
                f"an input does not fit {self._where}", found=f"{tensor.name} {array.shape} {array.dtype}",
                expected=f"{tensor.shape} {np.dtype(tensor.array_type)}",
            )  # fmt: skip
        return held(array, tensor.dtype)


class _Compiler:
    """Assign every value a place and every operation a step; compute at once what depends on constants alone."""

    def __init__(self, program: Program, name: str, where: str) -> None:
        self._where = where
        function = program.function(name)
        check_known(operations(function), where)
        self.values: Values = []  # the constants; None where a call puts something
        self.steps: list[Step] = []
        self.operations = 0
        self._places: dict[int, int] = {}  # by the identity of coremltools' Var
        self.inputs = [self._new_place(var, self._input(var, given)) for given, var in function.inputs.items()]
        for op in function.operations:
            self._add(op)
        self.outputs = [self._place_of(var, "its outputs") for var in function.outputs]
        self._plan_release()

    def _add(self, op: Any) -> None:
        if op.op_type == "const":
            return  # becomes a value where an operation wants it as one
        self.operations += 1
        step = self._step(op)
        if all(self.values[place] is not None for place in step.places):
            step.run(self.values)
        else:
            self.steps.append(step)

    def _step(self, op: Any) -> Step:
        operation = OPERATIONS[op.op_type]
        inputs = {name: given for name, given in op.inputs.items() if given is not None}
        parameters = {name: self._parameter(inputs[name], op) for name in operation.values if name in inputs}
        check_parameters(operation, op, parameters, self._where)
        check_types(operation, op, self._where)
        arguments = {name: self._argument(inputs[name], op) for name in inputs if name not in operation.values}
        results = tuple((self._new_place(var, None), self._fixed(tensor_type(var), words(op))) for var in op.outputs)
        return Step(f"{words(op)} in {self._where}", operation, arguments, parameters, results)

    def _parameter(self, var: Any, op: Any) -> Any:
        """Return a constant as a plain Python value."""
        if var.op is not None and var.op.op_type == "const":
            return var.val.tolist() if isinstance(var.val, (np.ndarray, np.generic)) else var.val
        value = self.values[self._place_of(var, words(op))]
        if value is None:
            raise ArtifactError(f"{words(op)} in {self._where} depends on a value of the call", found=str(var.name))
        return value.tolist()

    def _argument(self, given: Any, op: Any) -> Place:
        if isinstance(given, (list, tuple)):
            return [self._place_of(var, words(op)) for var in given]
        return self._place_of(given, words(op))

    def _place_of(self, var: Any, reader: str) -> int:
        if id(var) not in self._places and var.op is not None and var.op.op_type == "const":
            self.values[self._new_place(var, None)] = self._constant(var)
        if id(var) not in self._places:
            raise ArtifactError(f"{reader} in {self._where} reads what nothing before it gives", found=str(var.name))
        return self._places[id(var)]

    def _constant(self, var: Any) -> Tensor:
        declared = self._fixed(tensor_type(var), f"const '{var.name}'")
        try:
            return held(var.val, declared.dtype)
        except (ValueError, TypeError) as cause:
            raise ArtifactError(f"const '{var.name}' in {self._where} cannot be used", found=cause) from cause

    def _new_place(self, var: Any, declared: TensorType | None) -> int:
        self._places[id(var)] = len(self.values)
        self.values.append(None)
        return self._places[id(var)]

    def _input(self, var: Any, name: str) -> TensorType:
        declared = self._fixed(tensor_type(var, name), "an input")
        if declared.dtype not in ARRAY_TYPES:
            raise ArtifactError(f"an input of {self._where} has a type that is not evaluated", found=declared)
        return declared

    def _fixed(self, declared: TensorType, what: str) -> TensorType:
        if not declared.fixed:
            raise ArtifactError(
                f"{what} in {self._where} has no fixed shape", found=declared, expected="fixed shapes",
                fix="Export one function for each number of points.",
            )  # fmt: skip
        return declared

    def _plan_release(self) -> None:
        """Note after which step a value is done with; drop constants that were folded into others."""
        needed = set(self.outputs)
        for step in reversed(self.steps):
            own = {*step.places, *(place for place, _ in step.results)}
            step.done_with.extend(place for place in own - needed if self.values[place] is None)
            needed |= own
        for place in set(range(len(self.values))) - needed:
            self.values[place] = None


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads for a while; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
