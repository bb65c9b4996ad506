"""The MIL program of a package, read back from its bytes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from samx.errors import ArtifactError, UnavailableError
from samx.extras import require
from samx.formats.coreml import declared, description
from samx.formats.coreml.library import EXTRA, UPDATE, open_coremltools, quiet
from samx.formats.coreml.package import PackageFiles, unpacked
from samx.formats.coreml.tensor_type import TensorType, tensor_type

PURPOSE = "reading a Core ML package"
# What the specification version of an ML Program asks for at least.
MINIMUM_OS: Mapping[int, str] = {
    6: "iOS 15, macOS 12", 7: "iOS 16, macOS 13", 8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15", 10: "iOS 26, macOS 26",
}  # fmt: skip
AGAIN = "Export it again."
SHOWN = 200  # characters of a library's own words


@dataclass(frozen=True)
class Program:
    """Hold the functions of an ML Program, as coremltools represents them."""

    where: str
    specification_version: int
    functions: Mapping[str, Any]  # coremltools' Function
    default: str
    coremltools: str  # the version that read it

    @property
    def minimum_os(self) -> str:
        """Say which systems can open it."""
        return MINIMUM_OS[self.specification_version]

    def function(self, name: str) -> Any:
        """Look a function up.

        Raises: ArtifactError naming those that there are.
        """
        if name not in self.functions:
            raise ArtifactError(
                f"{self.where} has no function of this name", found=name, expected=", ".join(self.functions), fix=AGAIN
            )
        return self.functions[name]

    def inputs(self, name: str) -> tuple[TensorType, ...]:
        """Describe a function's inputs, in order."""
        return tuple(tensor_type(var, given) for given, var in self.function(name).inputs.items())

    def outputs(self, name: str) -> tuple[TensorType, ...]:
        """Describe a function's outputs, in order."""
        return tuple(tensor_type(var) for var in self.function(name).outputs)

    def everything(self, name: str) -> Iterator[Any]:
        """Give a function's operations in order, constants too; nested blocks come after the one that holds them."""
        return _nested(self.function(name).operations)

    def operations(self, name: str) -> Iterator[Any]:
        """Give a function's operations in order, as above, without constants."""
        return (op for op in self.everything(name) if op.op_type != "const")


def load_program(package: PackageFiles, where: str) -> Program:
    """Read the program of a package.

    Raises: MissingExtraError and UnavailableError without a fitting coremltools; ArtifactError for a package that holds
    no sound ML Program.
    """
    library = open_coremltools(PURPOSE)
    spec = _specification(library, package.model, where)
    declared.check_operations(spec, where)
    declared.check_weight_files(spec, package, where)
    functions = _functions(spec, package, where)
    program = Program(where, int(spec.specificationVersion), functions, _default(spec), str(library.__version__))
    declared.check_types(spec, program)
    description.check(spec, program)
    return program


def _specification(library: ModuleType, data: bytes, where: str) -> Any:
    message = require("google.protobuf.message", EXTRA, PURPOSE)
    try:
        spec = library.proto.Model_pb2.Model.FromString(data)
    except message.DecodeError as cause:
        raise ArtifactError(f"the model in {where} cannot be parsed", found=cause, fix=AGAIN) from cause
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise ArtifactError(f"{where} holds no ML Program", found=kind or "no model", expected="mlProgram", fix=AGAIN)
    if spec.specificationVersion not in MINIMUM_OS:
        raise ArtifactError(
            f"{where} has an unknown specification version", found=spec.specificationVersion,
            expected=f"{min(MINIMUM_OS)} to {max(MINIMUM_OS)}", fix=UPDATE,
        )  # fmt: skip
    return spec


def _functions(spec: Any, package: PackageFiles, where: str) -> dict[str, Any]:
    with quiet():
        from coremltools.converters.mil.frontend.milproto import load as milproto

    if milproto.BlobReader is None:  # its native part comes in the wheels for macOS and Linux only
        raise UnavailableError("this build of coremltools cannot read weights", fix="Use its wheel on Linux or macOS.")
    with quiet(), warnings.catch_warnings(), unpacked(package) as path:
        warnings.simplefilter("ignore")  # NumPy's, from folding constants: an infinity is no news here
        try:
            read = milproto.load(spec, spec.specificationVersion, str(path / package.weights_folder))
        except Exception as cause:  # of many classes, assertions among them
            words = " ".join(f"{type(cause).__name__}: {cause}".split())[:SHOWN]
            raise ArtifactError(f"the program in {where} is not sound", found=words, fix=AGAIN) from cause
    order = [function.name for function in spec.description.functions]  # a protobuf's map has none
    return dict(sorted(read.functions.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))


def _nested(operations: Any) -> Iterator[Any]:
    for op in operations:
        yield op
        for block in op.blocks:
            yield from _nested(block.operations)


def _default(spec: Any) -> str:
    names = list(spec.mlProgram.functions)
    return str(spec.description.defaultFunctionName) or (names[0] if len(names) == 1 else "")
