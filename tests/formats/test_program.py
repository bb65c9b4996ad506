"""Programs are read back as they were saved, or refused with what is wrong."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_packages import ct, edited, function, join, mb, operation, save_function

from samx.errors import ArtifactError, MissingExtraError, UnavailableError
from samx.extras import silent
from samx.formats.coreml import program as library
from samx.formats.coreml.package import PackageFiles, package_from_directory
from samx.formats.coreml.program import load_program, operations
from samx.formats.coreml.tensors import UNKNOWN, TensorType, tensor_type

WEIGHT = np.arange(256, dtype=np.float32).reshape(4, 64)
MIL = ct.proto.MIL_pb2
FLOAT16, INT32 = MIL.FLOAT16, MIL.INT32


def scaled(rows: int, ios: int = 18) -> Any:
    def build(x: Any) -> Any:
        return mb.relu(
            x=mb.add(x=mb.matmul(x=x, y=WEIGHT, transpose_y=True), y=np.array([1, 2, 3, 4], np.float32)), name="y"
        )

    return function(build, {"x": ((rows, 64), "fp32")}, ios)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> PackageFiles:
    """One function `main`, (2, 64) -> (2, 4)."""
    return package_from_directory(save_function(scaled(2), tmp_path_factory.mktemp("one") / "toy.mlpackage"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> PackageFiles:
    """Functions `rows_2` and `rows_1` over one set of weights."""
    folder = tmp_path_factory.mktemp("two")
    parts = {f"rows_{n}": save_function(scaled(n), folder / f"{n}.mlpackage") for n in (2, 1)}
    return package_from_directory(join(parts, folder / "toy.mlpackage"))


def test_a_program_is_read_back(package: PackageFiles) -> None:
    program = load_program(package, "toy")
    assert (program.default, list(program.functions), program.specification_version) == ("main", ["main"], 9)
    assert program.minimum_os == "iOS 18, macOS 15"
    assert program.inputs("main") == (TensorType("x", (2, 64), "fp32"),)
    assert program.outputs("main") == (TensorType("y", (2, 4), "fp32"),)
    assert [op.op_type for op in operations(program.function("main")) if op.op_type != "const"] == [
        "matmul",
        "add",
        "relu",
    ]
    assert str(program.inputs("main")[0]) == "x (2, 64) fp32"


def test_functions_share_weights_and_keep_their_order(several: PackageFiles) -> None:
    program = load_program(several, "toy")
    assert (program.default, list(program.functions)) == ("rows_2", ["rows_2", "rows_1"])
    assert [program.inputs(name)[0].shape for name in program.functions] == [(2, 64), (1, 64)]
    assert len(several.files[f"{several.weights_folder}/weight.bin"]) < 2 * WEIGHT.nbytes


def test_weights_outlive_the_files(package: PackageFiles) -> None:
    matmul = next(op for op in operations(load_program(package, "toy").function("main")) if op.op_type == "matmul")
    np.testing.assert_array_equal(matmul.y.val, WEIGHT)


@pytest.mark.parametrize(
    ("ios", "words"), [(15, "iOS 15, macOS 12"), (16, "iOS 16, macOS 13"), (17, "iOS 17, macOS 14")]
)
def test_older_systems(tmp_path: Path, ios: int, words: str) -> None:
    path = save_function(scaled(1, ios), tmp_path / "old.mlpackage", ios)
    assert load_program(package_from_directory(path), "old").minimum_os == words


def test_a_function_that_is_not_there_is_named(package: PackageFiles) -> None:
    with pytest.raises(ArtifactError, match="found points_3, expected main"):
        load_program(package, "toy").inputs("points_3")


def test_a_size_that_is_not_fixed_is_seen() -> None:
    made = function(lambda x: mb.relu(x=x), {"x": ((1, ct.converters.mil.mil.get_new_symbol()), "fp16")})
    found = tensor_type(made.outputs[0])
    assert (found.shape, found.dtype, found.fixed) == ((1, UNKNOWN), "fp16", False)
    assert str(found).endswith("(1, ?) fp16")


def neural_network(spec: Any) -> None:
    spec.neuralNetwork.layers.add()


def pipeline(spec: Any) -> None:
    spec.pipeline.names.append("x")


def main(spec: Any) -> Any:
    return spec.mlProgram.functions["main"]


def unknown(spec: Any) -> None:
    operation(spec, "relu").type = "teleport"


def shape(spec: Any) -> None:
    operation(spec, "add").outputs[0].type.tensorType.dimensions[0].constant.size = 3


def kind(spec: Any) -> None:
    operation(spec, "relu").outputs[0].type.tensorType.dataType = FLOAT16


def constant_shape(spec: Any) -> None:
    operation(spec, "const").outputs[0].type.tensorType.dimensions[0].constant.size += 1


def mixed(spec: Any) -> None:
    """Say that the input is float16: the stored weight stays float32, and the bias too."""
    main(spec).inputs[0].type.tensorType.dataType = FLOAT16


def unread(spec: Any) -> None:
    operation(spec, "relu").inputs["x"].arguments[0].name = "nobody"


def weight(spec: Any) -> Any:
    found = main(spec)
    operations = found.block_specializations[found.opset].operations
    return next(
        op.attributes["val"].blobFileValue for op in operations if op.attributes["val"].HasField("blobFileValue")
    )


def elsewhere(spec: Any) -> None:
    weight(spec).fileName = "@model_path/../../weights/weight.bin"


def absolute(spec: Any) -> None:
    weight(spec).fileName = "/etc/weights/weight.bin"


def offset(spec: Any) -> None:
    weight(spec).offset += 8


def far_offset(spec: Any) -> None:
    weight(spec).offset = 2**40


def no_opset(spec: Any) -> None:
    main(spec).opset = "CoreML99"


def described_name(spec: Any) -> None:
    spec.description.input[0].name = "image"


def described_shape(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.shape[0] = 7


def described_type(spec: Any) -> None:
    spec.description.output[0].type.multiArrayType.dataType = 65552


def described_image(spec: Any) -> None:
    spec.description.input[0].type.imageType.width = 64


def described_more(spec: Any) -> None:
    spec.description.output.add().name = "more"


def state(spec: Any) -> None:
    spec.description.state.add().name = "memory"


FAULTS: dict[Callable[[Any], object], str] = {
    neural_network: "holds no ML Program: found neuralNetwork, expected mlProgram",
    pipeline: "holds no ML Program: found pipeline",
    lambda spec: spec.ClearField("mlProgram"): "found no model",
    lambda spec: setattr(spec, "specificationVersion", 99): "unknown specification version: found 99, expected 6 to 10",
    lambda spec: setattr(spec, "specificationVersion", 5): "unknown specification version: found 5",
    unknown: "an operation that coremltools does not know: found teleport 'y'",
    shape: "Mismatch between var types",
    kind: "Mismatch between var types",
    constant_shape: "does not give what it declares: found const",
    mixed: "is not sound",
    unread: "Var nobody not found",
    elsewhere: "that the package does not have: found '@model_path/../../weights/weight.bin' of const",
    absolute: "a file that the package does not have: found '/etc/weights/weight.bin'",
    offset: "is not sound: found RuntimeError: Invalid sentinel",
    far_offset: "is not sound: found ValueError: index out of bounds",
    no_opset: "Missing block specialization",
    described_name: "inputs of 'main' in toy are described wrongly: found no x; image, expected x",
    described_shape: r"are described wrongly: found x \(7, 64\) fp32, expected x \(2, 64\) fp32",
    described_type: r"outputs of 'main' in toy are described wrongly: found y \(2, 4\) fp16",
    described_image: r"found x \(1, 3, 0, 64\) INVALID_COLOR_SPACE",
    described_more: "found more",
    state: "keeps state between calls",
}


@pytest.mark.parametrize(("change", "words"), FAULTS.items(), ids=[f"{i}" for i in range(len(FAULTS))])
def test_a_planted_fault_is_named(package: PackageFiles, change: Callable[[Any], object], words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        load_program(edited(package, change), "toy")
    assert "\n" not in str(caught.value)


def no_default(spec: Any) -> None:
    spec.description.defaultFunctionName = ""


def undescribed(spec: Any) -> None:
    del spec.description.functions[1]


def missing(spec: Any) -> None:
    del spec.mlProgram.functions["rows_1"]


@pytest.mark.parametrize("change", [no_default, undescribed, missing])
def test_described_functions_are_those_there_are(several: PackageFiles, change: Callable[[Any], object]) -> None:
    with pytest.raises(ArtifactError, match="toy describes other functions than it has"):
        load_program(edited(several, change), "toy")


def test_bytes_that_are_no_protobuf(package: PackageFiles) -> None:
    broken = replace(package, files={**package.files, package.model_path: b"\xff" * 100})
    with pytest.raises(ArtifactError, match="the model in toy cannot be parsed"):
        load_program(broken, "toy")


@pytest.mark.parametrize(("size", "words"), [(600, "index out of bounds"), (40, "index out of bounds"), (0, "mmap")])
def test_truncated_weights(package: PackageFiles, size: int, words: str) -> None:
    name = f"{package.weights_folder}/weight.bin"
    with pytest.raises(ArtifactError, match=f"the program in toy is not sound: found .*{words}"):
        load_program(replace(package, files={**package.files, name: package.files[name][:size]}), "toy")


def test_missing_weights(package: PackageFiles) -> None:
    files = {name: data for name, data in package.files.items() if not name.endswith(".bin")}
    with pytest.raises(ArtifactError, match="weights from a file that the package does not have"):
        load_program(replace(package, files=files), "toy")


class TestLibrary:
    def test_without_coremltools_the_extra_is_named(
        self, package: PackageFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'samx\[coreml\]'"):
            load_program(package, "toy")

    def test_an_old_version_is_refused(self, package: PackageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ct, "__version__", "8.3.0")
        with pytest.raises(UnavailableError, match=r"too old: found 8\.3\.0, expected 9\.0 or newer.*coremltools>=9"):
            load_program(package, "toy")

    def test_a_build_that_reads_no_weights_is_named(
        self, package: PackageFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from coremltools.converters.mil.frontend.milproto import load

        monkeypatch.setattr(load, "BlobReader", None)
        with pytest.raises(UnavailableError, match="cannot read weights"):
            load_program(package, "toy")

    def test_a_library_that_does_not_load_is_unavailable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*arguments: str) -> None:
            raise ImportError("libstdc++ is too old")

        monkeypatch.setattr(library, "require", broken)
        with pytest.raises(UnavailableError, match="does not load: found libstdc"):
            library.open_coremltools("this test")

    def test_warnings_come_back_afterwards(self) -> None:
        logger = logging.getLogger("coremltools")
        before = logger.level
        with silent("coremltools"):
            assert not logger.isEnabledFor(logging.WARNING)
        assert logger.level == before
