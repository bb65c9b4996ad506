"""What a package says about its functions, against what they are: apps read the one, Core ML runs the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from samx.errors import ArtifactError
from samx.formats.coreml.tensor_type import UNKNOWN, TensorType

if TYPE_CHECKING:
    from samx.formats.coreml.program import Program

# By the name of the description's type.
DESCRIBED_TYPES: Mapping[str, str] = {
    "FLOAT16": "fp16", "FLOAT32": "fp32", "DOUBLE": "fp64", "INT32": "int32", "INT8": "int8",
}  # fmt: skip


def check(spec: Any, program: Program) -> None:
    """Compare names, shapes and types of inputs and outputs.

    Raises: ArtifactError.
    """
    described = _described(spec, program)
    if set(described) != set(program.functions) or program.default not in program.functions:
        raise ArtifactError(
            f"{program.where} describes other functions than it has", found=", ".join(described) or "none",
            expected=", ".join(program.functions), fix="Export it again.",
        )  # fmt: skip
    for name, function in described.items():
        if function.state:
            raise ArtifactError(f"{program.where} keeps state between calls", found=f"function '{name}'")
        _check(function.input, program.inputs(name), f"inputs of '{name}' in {program.where}")
        _check(function.output, program.outputs(name), f"outputs of '{name}' in {program.where}")


def _described(spec: Any, program: Program) -> dict[str, Any]:
    """Give a description for each function; a package of one function has no list of them."""
    functions = spec.description.functions
    return {function.name: function for function in functions} if functions else {program.default: spec.description}


def _check(features: Iterable[Any], found: Iterable[TensorType], what: str) -> None:
    described = {feature.name: _type(feature) for feature in features}
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


def _type(feature: Any) -> TensorType:
    if feature.type.WhichOneof("Type") != "multiArrayType":
        return TensorType(feature.name, (UNKNOWN,), str(feature.type.WhichOneof("Type")))
    array = feature.type.multiArrayType
    kind = array.ArrayDataType.Name(array.dataType)
    return TensorType(feature.name, tuple(array.shape), DESCRIBED_TYPES.get(kind, kind))
