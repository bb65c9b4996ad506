"""build.json says everything that makes an engine, and anything else in it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_toys import MODEL, POINTS, PROMPTS, SPEC, toy_artifact, toy_plan

import samx
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UsageError
from samx.exporters.tensorrt import reproduce_script
from samx.formats.tensorrt.plan import BuildPlan
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec, sam2_spec


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_a_plan_is_read_back_as_it_was_written(target: str) -> None:
    plan = toy_plan(target)
    assert BuildPlan.from_bytes(plan.to_bytes(), "build.json") == plan
    assert json.loads(plan.to_bytes())["strongly_typed"] is True


def test_every_dynamic_input_has_limits() -> None:
    spec = sam2_spec(mask_input=True)
    plan = BuildPlan.of("trt", spec, MODEL, "0" * 64, ShapeRange(1, 8, 64), ShapeRange(1, 2, 16))
    assert plan.profile == {
        "point_coords": ((1, 1, 2), (8, 2, 2), (64, 16, 2)),
        "point_labels": ((1, 1), (8, 2), (64, 16)),
        "mask_input": ((1, 1, 256, 256), (8, 1, 256, 256), (64, 1, 256, 256)),
        "has_mask_input": ((1,), (8,), (64,)),
    }


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (toy_plan("trt"), "trtexec --onnx=decoder.onnx --saveEngine=decoder.engine --skipInference --noTF32 "
         "--stronglyTyped --minShapes=point_coords:1x1x2,point_labels:1x1 "
         "--optShapes=point_coords:2x2x2,point_labels:2x2 --maxShapes=point_coords:4x3x2,point_labels:4x3"),
        (toy_plan(), "tensorrt_rtx --onnx=decoder.onnx --saveEngine=decoder.engine --skipInference --noTF32 --min"),
        (toy_plan(turing=True), "--noTF32 --computeCapabilities=75 --minShapes"),
    ],
    ids=["trt", "rtx", "turing"],
)  # fmt: skip
def test_the_vendors_command_makes_the_same_engine(plan: BuildPlan, words: str) -> None:
    assert words in plan.command


def test_what_no_library_builds_is_refused() -> None:
    with pytest.raises(UsageError, match="no engine to build: found target 'onnx', expected trt or trt-rtx"):
        toy_plan("onnx")
    with pytest.raises(UsageError, match="no engines for Turing alone"):
        toy_plan("trt", turing=True)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda plan: plan.update(format="other"),
    "schema": lambda plan: plan.update(schema_version=2),
    "a field more": lambda plan: plan.update(plugins=["evil.so"]),
    "a field less": lambda plan: plan.pop("compute"),
    "target": lambda plan: plan.update(target="onnx"),
    "compute": lambda plan: plan.update(compute="sm90"),
    "weak typing": lambda plan: plan.update(strongly_typed=False),
    "tf32": lambda plan: plan.update(tf32=True),
    "hash": lambda plan: plan.update(onnx_sha256="1234"),
    "path": lambda plan: plan.update(model="../decoder.onnx"),
    "range": lambda plan: plan.update(prompts=[2, 1, 3]),
    "profile": lambda plan: plan["profile"].update(point_labels=[[1, 1], [2, 2], [99, 3]]),
    "axis": lambda plan: plan["inputs"][1].update(shape=["prompts", "dots", 2]),
    "size": lambda plan: plan["inputs"][0].update(shape=[1, 256, 0, 1]),
    "dtype": lambda plan: plan["inputs"][0].update(dtype=16),
    "port": lambda plan: plan["outputs"].append({"name": "x"}),
}


@pytest.mark.parametrize("how", EDITS)
def test_an_edited_plan_is_refused(how: str) -> None:
    body = json.loads(toy_plan().to_bytes())
    EDITS[how](body)
    with pytest.raises(ArtifactError) as caught:
        BuildPlan.from_bytes(json.dumps(body).encode(), "build.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", [replace(SPEC, masks="single"), sam1_spec(image_size=32), replace(SPEC, mask_input=True)]
)
def test_a_plan_for_another_decoder_is_refused(spec: Any) -> None:
    toy_plan().check_spec(SPEC, "build.json")
    with pytest.raises(ArtifactError, match="other tensors"):
        toy_plan().check_spec(spec, "build.json")


def run_script(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run as a user in this environment, activated or not."""
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", "reproduce.sh", *arguments], cwd=path, capture_output=True, text=True, check=False, timeout=120,
        stdin=subprocess.DEVNULL, env={**os.environ, "PATH": here},
    )  # fmt: skip


def test_stock_polygraphy_repeats_the_build(tmp_path: Path) -> None:
    path = toy_artifact(tmp_path / "toy")
    done = run_script(path, "build", "../repeated.engine")
    assert done.returncode == 0, done.stderr
    assert "Finished engine building" in done.stdout
    assert "[STRONGLY_TYPED]" in done.stdout  # and no TF32 beside it
    assert (tmp_path / "repeated.engine").stat().st_size > 1_000, "the engine is kept"
    assert Artifact.open(path).manifest.files.keys() == {path.name for path in path.iterdir()} - {"manifest.json"}


def test_the_script_replaces_no_file_and_asks_where_the_engine_goes(tmp_path: Path) -> None:
    path = toy_artifact(tmp_path / "toy")
    (tmp_path / "mine").write_text("mine")
    refused, unasked = run_script(path, "build", "../mine"), run_script(path, "build")
    assert (refused.returncode, (tmp_path / "mine").read_text()) == (7, "mine")
    assert "exists already" in refused.stderr
    assert unasked.returncode == 2
    assert "reproduce.sh build ENGINE" in unasked.stderr


def test_the_script_is_written_from_a_zip_too(tmp_path: Path) -> None:
    """The package as one file, as devices get it."""
    package = Path(samx.__file__).parent
    with zipfile.ZipFile(tmp_path / "samx.zip", "w") as archive:
        for file in [*package.rglob("*.py"), *package.rglob("*.sh")]:
            archive.write(file, file.relative_to(package.parent))
    (tmp_path / "plan.json").write_bytes(toy_plan().to_bytes())
    code = (
        "import sys; from pathlib import Path; from samx.exporters import tensorrt as reproduce\n"
        "plan = reproduce.BuildPlan.from_bytes(Path(sys.argv[1]).read_bytes(), 'plan')\n"
        "print(reproduce.__file__, reproduce.reproduce_script(plan, 1024), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan.json"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "samx.zip")},
    )  # fmt: skip
    where, _, script = done.stdout.partition("\n")
    assert where.startswith(str(tmp_path / "samx.zip"))
    assert script.strip() == reproduce_script(toy_plan(), 1024).strip()


def test_stock_polygraphy_repeats_the_comparison_up_to_the_gpu(tmp_path: Path) -> None:
    done = run_script(toy_artifact(tmp_path / "toy"), "compare")
    assert "PASSED" in done.stdout, done.stdout + done.stderr  # ONNX Runtime took the prompts
    assert "unrecognized arguments" not in done.stderr
    assert done.returncode != 0, "this test is for machines without a GPU"
    assert "CUDA" in done.stdout + done.stderr


def test_the_script_refuses_another_graph(tmp_path: Path) -> None:
    path = toy_artifact(tmp_path / "toy")
    (path / MODEL).write_bytes(b"another")
    done = run_script(path, "build")
    assert done.returncode != 0
    assert "is not the file that the engine was built from" in done.stderr


def test_the_script_without_a_word_says_its_words(tmp_path: Path) -> None:
    done = run_script(toy_artifact(tmp_path / "toy"))
    assert done.returncode == 2
    assert "reproduce.sh compare" in done.stderr


def test_the_script_for_tensorrt_is_not_for_rtx() -> None:
    script = reproduce_script(toy_plan("trt"), 1024)
    assert "POLYGRAPHY_USE_TENSORRT_RTX" not in script
    assert "import tensorrt as trt" in script
    assert "trtexec --onnx" in script
    assert (PROMPTS.opt, POINTS.opt, 2) == (2, 2, 2)
    assert "'point_coords': (2, 2, 2)" in script
