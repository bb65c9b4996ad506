"""What is refused before a function is evaluated: operations, ways and types that the evaluator does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samx.errors import ArtifactError
from samx.formats.coreml.storage import TYPES
from samx.formats.coreml.tensor_type import tensor_type
from samx.runtimes.mil.operations import OPERATIONS
from samx.runtimes.mil.operations.kinds import Operation

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
    unknown = [words(op) for op in ops if op.op_type not in OPERATIONS]
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


def check_types(operation: Operation, op: Any, parameters: Mapping[str, Any], where: str) -> None:
    """Refuse types that MIL would not accept, and a declared result that does not follow from them.

    Raises: ArtifactError.
    """
    found = {name: types_of(given) for name, given in op.inputs.items() if name not in operation.values}
    alike = [one for name in operation.alike for one in found.get(name, ())]
    decisive = [dtype for dtype, constant in alike if not (operation.mixes and constant)] or [alike[0][0]]
    unknown = {dtype for types in found.values() for dtype, _ in types} - TYPES
    if unknown or len(set(decisive)) > 1 or not {dtype for dtype, _ in alike} <= operation.types:
        raise ArtifactError(
            f"{words(op)} in {where} has inputs of types that do not go together",
            found="; ".join(f"{name} {', '.join(dtype for dtype, _ in types)}" for name, types in found.items()),
            expected=f"{' and '.join(operation.alike)} alike, of {', '.join(sorted(operation.types))}",
        )  # fmt: skip
    expected = _result_type(operation, found, parameters)
    declared = {tensor_type(var).dtype for var in op.outputs}
    if declared != {expected}:
        raise ArtifactError(
            f"{words(op)} in {where} declares a result of another type", found=", ".join(sorted(declared)),
            expected=expected,
        )  # fmt: skip


def types_of(given: Any) -> list[tuple[str, bool]]:
    """Give the type of each value of an input, and whether it is a constant."""
    values = given if isinstance(given, (list, tuple)) else [given]
    return [(tensor_type(var).dtype, var.op is not None and var.op.op_type == "const") for var in values]


def _result_type(
    operation: Operation, found: Mapping[str, list[tuple[str, bool]]], parameters: Mapping[str, Any]
) -> str:
    candidates = [name for name in operation.gives if name in parameters or name in found or name in TYPES]
    varying = [name for name in candidates if not (name in found and found[name][0][1])]
    name = (varying or candidates)[0]
    if name in parameters:
        return str(parameters[name]).lower()
    return found[name][0][0] if name in found else name
