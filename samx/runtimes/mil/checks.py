"""What is refused before a function is evaluated: operations, ways and types that the evaluator does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samx.errors import ArtifactError
from samx.formats.coreml.tensors import tensor_type
from samx.runtimes.mil.operations import OPERATIONS
from samx.runtimes.mil.operations.base import Operation

SHOWN = 3  # unknown operations that an error names


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
