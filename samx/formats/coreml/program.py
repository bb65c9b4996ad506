"""coremltools, and the MIL program of a package, read back from its bytes: what its file declares, and what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from samx.errors import ArtifactError, MissingExtraError, UnavailableError
from samx.extras import require, require_version, silent
from samx.formats.coreml.package import WEIGHTS, PackageFiles, unpacked
from samx.formats.coreml.tensors import TensorType, check_described, tensor_type

LIBRARY, EXTRA = "coremltools", "coreml"
MINIMUM = (9, 0)  # the first release that reads and writes iOS 26 programs, and that runs with NumPy 2
UPDATE = "Update it with: pip install --upgrade 'coremltools>=9'"
PURPOSE = "reading a Core ML package"
# What the specification version of an ML Program asks for at least.
MINIMUM_OS: Mapping[int, str] = {
    6: "iOS 15, macOS 12", 7: "iOS 16, macOS 13", 8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15", 10: "iOS 26, macOS 26",
}  # fmt: skip
MODEL_PATH = "@model_path"  # MIL's name for the folder of the model's file
AGAIN = "Export it again."
SHOWN = 200  # characters of a library's own words


def open_coremltools(purpose: str) -> ModuleType:
    """Import coremltools and check its version.

    Raises: MissingExtraError; UnavailableError when it does not load or is too old.
    """
    try:
        library = require(LIBRARY, EXTRA, purpose)
    except MissingExtraError:
        raise
    except (ImportError, OSError) as cause:
        raise UnavailableError("coremltools does not load", found=cause, fix=UPDATE) from cause
    require_version(LIBRARY, str(library.__version__), MINIMUM, UPDATE)
    return library


def parse_model(data: bytes, purpose: str) -> Any:
    """Parse a package's specification, which is a protobuf."""
    return open_coremltools(purpose).proto.Model_pb2.Model.FromString(data)


def program_of(functions: Mapping[str, Any], purpose: str) -> Any:
    """Join MIL functions to a program of coremltools'."""
    program = open_coremltools(purpose).converters.mil.mil.Program()
    for name, function in functions.items():
        program.add_function(name, function)
    return program


@dataclass(frozen=True)
class Program:
    """Describe an ML Program by its functions, as coremltools represents them."""

    where: str
    specification_version: int
    functions: Mapping[str, Any]  # coremltools' Function
    default: str

    @property
    def minimum_os(self) -> str:
        """Which systems can open it."""
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


def operations(block: Any) -> Iterator[Any]:
    """Yield a function's operations in order, constants too; nested blocks come after the one that holds them."""
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from operations(inner)


def load_program(package: PackageFiles, where: str) -> Program:
    """Read the program of a package.

    Raises: MissingExtraError and UnavailableError without a fitting coremltools; ArtifactError for a package that holds
    no sound ML Program.
    """
    library = open_coremltools(PURPOSE)
    spec = _specification(library, package.model, where)
    _check_operations(spec, where)
    _check_weight_files(spec, package, where)
    program = Program(where, int(spec.specificationVersion), _functions(spec, package, where), _default(spec))
    _check_types(spec, program)
    _check_description(spec, program)
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
    with silent(LIBRARY):
        from coremltools.converters.mil.frontend.milproto import load as milproto

    if milproto.BlobReader is None:  # its native part comes in the wheels for macOS and Linux only
        raise UnavailableError("this build of coremltools cannot read weights", fix="Use its wheel on Linux or macOS.")
    with silent(LIBRARY), unpacked(package) as path:
        try:
            read = milproto.load(spec, spec.specificationVersion, str(path / package.weights_folder))
        except Exception as cause:  # of many classes, assertions among them
            words = " ".join(f"{type(cause).__name__}: {cause}".split())[:SHOWN]
            raise ArtifactError(f"the program in {where} is not sound", found=words, fix=AGAIN) from cause
    order = [function.name for function in spec.description.functions]  # a protobuf's map has none
    return dict(sorted(read.functions.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))


def _default(spec: Any) -> str:
    names = list(spec.mlProgram.functions)
    return str(spec.description.defaultFunctionName) or (names[0] if len(names) == 1 else "")


def _check_operations(spec: Any, where: str) -> None:
    """Name an operation that coremltools does not have: its own words would not."""
    with silent(LIBRARY):
        from coremltools.converters.mil.mil import Builder

    for operation in _declared(spec):
        if not hasattr(Builder, operation.type):
            raise ArtifactError(
                f"the program in {where} has an operation that coremltools does not know", found=_words(operation),
                fix=f"{AGAIN} Or: {UPDATE}",
            )  # fmt: skip


def _check_weight_files(spec: Any, package: PackageFiles, where: str) -> None:
    """Refuse weights that lie anywhere but in the package: coremltools reads whatever has the same last name."""
    folder = package.weights_folder.removesuffix(WEIGHTS)
    for operation in _declared(spec):
        for name in {value.blobFileValue.fileName for value in _values(operation) if value.HasField("blobFileValue")}:
            if not name.startswith(f"{MODEL_PATH}/") or name.replace(f"{MODEL_PATH}/", folder) not in package.files:
                raise ArtifactError(
                    f"the program in {where} takes weights from a file that the package does not have",
                    found=f"{name[:100]!r} of {_words(operation)}", fix=AGAIN,
                )  # fmt: skip


def _check_types(spec: Any, program: Program) -> None:
    """Compare the types that the file declares with those that follow from the operations, constants included."""
    types, proto_to_types = _types()
    for name, function in spec.mlProgram.functions.items():
        found = {var.name: var for op in operations(program.function(name)) for var in op.outputs}
        for operation in _block(function):
            for output in operation.outputs:
                var = found.get(output.name)
                if var is None or not types.is_compatible_type(var.sym_type, proto_to_types(output.type)):
                    raise ArtifactError(
                        f"an operation of {program.where} does not give what it declares", found=_words(operation),
                        expected="nothing" if var is None else tensor_type(var), fix=AGAIN,
                    )  # fmt: skip


@cache
def _types() -> tuple[Any, Any]:
    """Import once what every operation asks for: being quiet takes longer than the comparison."""
    with silent(LIBRARY):
        from coremltools.converters.mil.frontend.milproto.helper import proto_to_types
        from coremltools.converters.mil.mil import types

    return types, proto_to_types


def _check_description(spec: Any, program: Program) -> None:
    """Compare what the package says about its functions with what they are: apps read the one, Core ML the other."""
    functions = spec.description.functions  # a package of one function has no list of them
    described = {one.name: one for one in functions} if functions else {program.default: spec.description}
    if set(described) != set(program.functions) or program.default not in program.functions:
        raise ArtifactError(
            f"{program.where} describes other functions than it has", found=", ".join(described) or "none",
            expected=", ".join(program.functions), fix=AGAIN,
        )  # fmt: skip
    for name, function in described.items():
        if function.state:
            raise ArtifactError(f"{program.where} keeps state between calls", found=f"function '{name}'")
        check_described(function.input, program.inputs(name), f"inputs of '{name}' in {program.where}")
        check_described(function.output, program.outputs(name), f"outputs of '{name}' in {program.where}")


def _declared(spec: Any) -> Iterator[Any]:
    """Yield the operations in the file's own words, without those of nested blocks."""
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
