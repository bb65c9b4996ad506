"""What a program's file declares, operation by operation, against what coremltools makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from samx.errors import ArtifactError
from samx.formats.coreml.library import UPDATE, quiet
from samx.formats.coreml.package import WEIGHTS, PackageFiles
from samx.formats.coreml.tensor_type import tensor_type

if TYPE_CHECKING:
    from samx.formats.coreml.program import Program

MODEL_PATH = "@model_path"  # MIL's name for the folder of the model's file
AGAIN = "Export it again."


def check_operations(spec: Any, where: str) -> None:
    """Name an operation that coremltools does not have: its own words would not.

    Raises: ArtifactError.
    """
    with quiet():
        from coremltools.converters.mil.mil import Builder

    for operation in _operations(spec):
        if not hasattr(Builder, operation.type):
            raise ArtifactError(
                f"the program in {where} has an operation that coremltools does not know", found=_words(operation),
                fix=f"{AGAIN} Or: {UPDATE}",
            )  # fmt: skip


def check_weight_files(spec: Any, package: PackageFiles, where: str) -> None:
    """Refuse weights that lie anywhere but in the package: coremltools reads whatever has the same last name.

    Raises: ArtifactError.
    """
    folder = package.weights_folder.removesuffix(WEIGHTS)
    for operation in _operations(spec):
        for name in {value.blobFileValue.fileName for value in _values(operation) if value.HasField("blobFileValue")}:
            if not name.startswith(f"{MODEL_PATH}/") or name.replace(f"{MODEL_PATH}/", folder) not in package.files:
                raise ArtifactError(
                    f"the program in {where} takes weights from a file that the package does not have",
                    found=f"{name[:100]!r} of {_words(operation)}", fix=AGAIN,
                )  # fmt: skip


def check_types(spec: Any, program: Program) -> None:
    """Compare the types that the file declares with those that follow from the operations, constants included.

    Raises: ArtifactError.
    """
    for name, function in spec.mlProgram.functions.items():
        found = {var.name: var for op in program.everything(name) for var in op.outputs}
        for operation in _block(function):
            for output in operation.outputs:
                _check_type(operation, output, found.get(output.name), program.where)


def _check_type(operation: Any, output: Any, var: Any, where: str) -> None:
    types, proto_to_types = _types()
    if var is None or not types.is_compatible_type(var.sym_type, proto_to_types(output.type)):
        raise ArtifactError(
            f"an operation of {where} does not give what it declares", found=_words(operation),
            expected="nothing" if var is None else tensor_type(var), fix=AGAIN,
        )  # fmt: skip


@cache
def _types() -> tuple[Any, Any]:
    """Import once what every operation asks for: being quiet takes longer than the comparison."""
    with quiet():
        from coremltools.converters.mil.frontend.milproto.helper import proto_to_types
        from coremltools.converters.mil.mil import types

    return types, proto_to_types


def _operations(spec: Any) -> Iterator[Any]:
    """Give the operations in the file's own words, without those of nested blocks."""
    return (operation for function in spec.mlProgram.functions.values() for operation in _block(function))


def _block(function: Any) -> Iterator[Any]:
    found = function.opset in function.block_specializations
    return iter(function.block_specializations[function.opset].operations if found else ())


def _values(operation: Any) -> Iterator[Any]:
    yield from operation.attributes.values()
    for argument in operation.inputs.values():
        yield from (binding.value for binding in argument.arguments if binding.HasField("value"))


def _words(operation: Any) -> str:
    return f"{operation.type} '{', '.join(output.name for output in operation.outputs)}'"
