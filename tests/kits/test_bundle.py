"""A kit holds what a device needs, always in the same bytes, and only of an artifact that was shown to be right."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kits import Toy, artifact, copied, engine_artifact, kit_of, passed_report, suite

from samx.artifacts.store import Artifact
from samx.commands.bundle import FOLDER, bundle
from samx.errors import ArtifactError, ParityError, UsageError, WriteError
from samx.kits.program import PARTS, RUNTIME_PARTS, program
from samx.registry import BACKENDS
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.suite import ParitySuite


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def kit(made: Path) -> Path:
    return kit_of(made)


def test_the_artifact_is_in_the_kit_as_it_is(made: Path, kit: Path) -> None:
    inside = {path.name: path.read_bytes() for path in (kit / "artifact").iterdir()}
    assert inside == {path.name: path.read_bytes() for path in made.iterdir()}
    assert Artifact.open(kit / "artifact").manifest.target == "onnx"


def test_every_file_has_its_hash_in_the_kit(kit: Path) -> None:
    listed = json.loads((kit / "kit.json").read_bytes())["files"]
    names = {path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()}
    assert set(listed) == names - {"kit.json", "kit.json.sha256"}
    assert listed == {name: hashlib.sha256((kit / name).read_bytes()).hexdigest() for name in listed}


def test_the_hash_file_is_what_sha256sum_reads(kit: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "kit.json.sha256"], cwd=kit, check=True, capture_output=True)


def test_questions_and_answers_are_plain_arrays(made: Path, kit: Path) -> None:
    asked = ParitySuite.load((made / "parity_cases.npz").read_bytes())
    with np.load(kit / "parity.npz", allow_pickle=False) as stored:
        for i, (case, expected) in enumerate(zip(asked.cases, asked.expected, strict=True)):
            np.testing.assert_array_equal(stored[f"case{i}.in.point_coords"], case.prompts["point_coords"])
            np.testing.assert_array_equal(stored[f"case{i}.out.logits"], expected.logits)
            np.testing.assert_array_equal(stored[f"case{i}.out.above"], np.packbits(expected.above, axis=-1))
        for i, image in enumerate(asked.images):
            np.testing.assert_array_equal(stored[f"image{i}.image_embeddings"], image["image_embeddings"])


def test_the_same_artifact_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    twin = copied(made, tmp_path)
    for path in twin.iterdir():
        os.utime(path, (0, 0))
    (twin.parent / "toy").mkdir()
    twin = twin.rename(twin.parent / "toy" / "toy")
    first, second = bundle(made, tmp_path / "one.zip"), bundle(twin, tmp_path / "two.zip")
    assert first.sha256 == second.sha256 == hashlib.sha256((tmp_path / "two.zip").read_bytes()).hexdigest()


def test_the_archive_says_nothing_of_this_machine(made: Path, tmp_path: Path) -> None:
    bundle(made, tmp_path / "kit.zip")
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.filename for entry in entries if entry.external_attr >> 16 & 0o111} == {f"{FOLDER}/run.py"}


def test_the_result_says_what_was_written(made: Path, tmp_path: Path) -> None:
    result = bundle(made, tmp_path / "kit.zip")
    assert result.devices == ("cpu", "cuda")
    assert result.bytes == (tmp_path / "kit.zip").stat().st_size
    assert json.loads(json.dumps(result.to_json()))["path"] == str(tmp_path / "kit.zip")
    assert "python3 run.py" in result.summary()


def test_an_output_that_exists_is_kept_unless_asked(made: Path, tmp_path: Path) -> None:
    (tmp_path / "kit.zip").write_bytes(b"precious")
    with pytest.raises(WriteError, match="exists already"):
        bundle(made, tmp_path / "kit.zip")
    assert (tmp_path / "kit.zip").read_bytes() == b"precious"
    bundle(made, tmp_path / "kit.zip", overwrite=True)
    assert zipfile.is_zipfile(tmp_path / "kit.zip")


def test_a_kit_that_cannot_be_written_leaves_nothing(made: Path, tmp_path: Path) -> None:
    with pytest.raises(WriteError):
        bundle(made, tmp_path / "no" / "such" / "kit.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evidence": None}, "no parity evidence"),
        ({"evidence": {"level": "lowered"}}, "no parity evidence"),
        ({"evidence": {"passed": False}}, "failed evidence parity_report.json"),
        ({"report": run_gate(Toy(error=1.0), suite(), bounds_for("fp32"), level="graph"), "evidence": {"passed": True}},
         "failed evidence parity_report.json"),
    ],
    ids=["none", "lowered only", "failed", "failed, and the manifest lies"],
)  # fmt: skip
def test_what_was_not_shown_to_be_right_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = artifact(tmp_path / "toy", **changes)
    with pytest.raises(ParityError, match=words):
        bundle(path, tmp_path / "kit.zip")
    assert not (tmp_path / "kit.zip").exists()


def test_the_reports_that_these_tests_plant_are_what_they_are_said_to_be() -> None:
    assert passed_report(suite()).passed
    assert not run_gate(Toy(error=1.0), suite(), bounds_for("fp32"), level="graph").passed


def test_an_altered_artifact_is_refused(made: Path, tmp_path: Path) -> None:
    path = copied(made, tmp_path)
    data = bytearray((path / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "decoder.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match="was altered"):
        bundle(path, tmp_path / "kit.zip")


def test_the_targets_of_devices_have_kits() -> None:
    assert {"onnx", "trt", "trt-rtx", "coreml"} == {entry.target for entry in BACKENDS if entry.kit is not None}


def test_an_unknown_target_is_named(tmp_path: Path) -> None:
    path = artifact(tmp_path / "toy", target="abacus")
    with pytest.raises(UsageError, match="unknown export target: found 'abacus'"):
        bundle(path, tmp_path / "kit.zip")


ALL = tuple(RUNTIME_PARTS)
CHOICES = pytest.mark.parametrize("runtimes", [("onnxruntime",), ("tensorrt", "onnxruntime"), ("coreml",), ALL])


@CHOICES
def test_the_program_imports_the_standard_library_and_numpy_alone(runtimes: tuple[str, ...]) -> None:
    tree = ast.parse(program(runtimes))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert others == ({"numpy", "tensorrt_rtx"} if "tensorrt" in runtimes else {"numpy"})  # the latter for types only
    assert PARTS not in program(runtimes)


@CHOICES
def test_the_program_holds_every_name_once(runtimes: tuple[str, ...]) -> None:
    body = ast.parse(program(runtimes)).body
    defined = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    defined += [target.id for node in body if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Name)]  # fmt: skip
    assert sorted(defined) == sorted(set(defined))


@CHOICES
def test_the_program_has_no_undefined_or_unused_name(runtimes: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(program(runtimes))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--target-version", "py310"]
    done = subprocess.run(
        [*command, "--select", "F,E9", "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_kit_holds_what_runs_its_target_alone() -> None:
    assert "class TensorRT" not in program(("onnxruntime",))
    assert "class CoreML" not in program(("tensorrt", "onnxruntime"))


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_an_engine_kit_names_its_commands(target: str, tmp_path: Path) -> None:
    text = (kit_of(engine_artifact(tmp_path / "toy", target)) / "README.txt").read_text()
    assert "python3 run.py\n" in text
    assert "python3 run.py --device cpu\n" in text
    assert "If artifact/ holds an engine, it is not loaded" in text


def test_the_commands_of_an_onnx_kit_are_options_that_there_are(kit: Path) -> None:
    words = [line.split()[2:] for line in (kit / "README.txt").read_text().splitlines() if "python3 run.py" in line]
    assert words == [[], ["--device", "cuda"]]
