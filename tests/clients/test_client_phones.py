"""Clients of phones: Swift is parsed; Kotlin is compiled, and run with a stand-in of ONNX Runtime's Java interface."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from client_cases import Case, cases, code_of, exported, tool
from swift_parser import faults

from samx.artifacts.manifest import EncoderEntry
from samx.clients.code import write_code
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.registry import backend

pytestmark = pytest.mark.long

STUBS = Path(__file__).parent / "stubs"
JARS = "kotlin/run_kotlin_kernel/jars"
PACKAGES = {"encoder.mlpackage/Manifest.json": "encoder", "decoder.mlpackage/Manifest.json": "package"}


def swift(spec: DecoderSpec, folder: Path, precision: str = "fp16") -> str:
    encoder = EncoderEntry("demo", 1024, precision, ShapeRange(1, 1, 1))
    [path] = write_code(["swift"], backend("coreml"), spec, encoder, precision, PACKAGES, folder)
    return (folder / path).read_text()


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec(mask_input=True)], ids=["sam1", "sam2"])
def test_swift_parses(spec: DecoderSpec, tmp_path: Path) -> None:
    text = swift(spec, tmp_path)
    assert faults(text) == []
    assert faults(text.replace("func predict(", "func predict((")) != []


def test_swift_takes_the_types_of_the_package(tmp_path: Path) -> None:
    assert "MLShapedArray<Float16>(converting: found)" in swift(sam1_spec(), tmp_path)
    text = swift(sam2_spec(), tmp_path, "fp32")
    assert "MLShapedArray<Float>(converting: found)" in text
    assert '["image_embeddings", "high_res_features_0", "high_res_features_1"]' in text


@pytest.fixture(scope="module", params=["sam1", "sam2"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("clients") / "it", request.param, split=request.param == "sam2")


@pytest.fixture(scope="module")
def asked(artifact: Path) -> list[Case]:
    return cases(artifact, artifact.with_name("pictures"))


def kotlin(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile a client with what asks it, against the stand-in."""
    if shutil.which("javac") is None:
        pytest.skip("no javac here")
    jars = tool(JARS)
    subprocess.run(["javac", "-d", folder, *(STUBS / "java").rglob("*.java")], check=True, capture_output=True)
    compiler = ["java", "-cp", f"{jars}/*", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect"]
    classes = f"{folder}:{next(jars.glob('kotlin-stdlib-*.jar'))}"
    command = [*compiler, "-cp", classes, "-d", folder, source, STUBS / "Main.kt"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def asked_in_text(case: Case, mask: Path) -> str:
    height, width = case.expected.shape
    clicks = zip(case.points, case.labels, strict=True)
    points = ";".join(f"{x},{y},{label}" for (x, y), label in clicks) or "-"
    box = ",".join(map(str, case.box)) if case.box else "-"
    return f"{case.picture.with_suffix('.ppm')} {width} {height} {mask} {points} {box}\n"


def test_kotlin_gives_the_predictors_masks(artifact: Path, asked: list[Case], tmp_path: Path) -> None:
    done = kotlin(code_of(artifact, "Sam.kt"), tmp_path)
    assert done.returncode == 0, done.stderr
    listed = tmp_path / "asked.txt"
    listed.write_text("".join(asked_in_text(case, tmp_path / f"mask{i}") for i, case in enumerate(asked)))
    sessions = f"-Dsessions={sys.executable}\n{STUBS / 'session.py'}"
    classes = f"{tmp_path}:{next(tool(JARS).glob('kotlin-stdlib-*.jar'))}"
    run = ["java", sessions, "-cp", classes, "MainKt", str(artifact), str(listed)]
    answered = subprocess.run(run, capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    for i, case in enumerate(asked):
        case.check((np.fromfile(tmp_path / f"mask{i}", np.uint8) > 0).reshape(case.expected.shape))


def test_the_kotlin_compiler_sees_a_fault(artifact: Path, tmp_path: Path) -> None:
    source = tmp_path / "Sam.kt"
    source.write_text(code_of(artifact, "Sam.kt").read_text().replace("graph.inputNames", "graph.inputs"))
    done = kotlin(source, tmp_path)
    assert done.returncode != 0
    assert "inputs" in done.stderr
