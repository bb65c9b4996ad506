"""A backend is its own files and one entry of the registry: everything works with one that samx does not have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_backend import BACKEND, compiler, exporter
from toys import arrays, image_tensors, toy_decoder

import samx
from samx import registry
from samx.artifacts.manifest import FileEntry, Lowered, Manifest
from samx.benchmarks.subjects import open_subjects
from samx.commands.bundle import bundle
from samx.commands.calibrate import calibrate
from samx.commands.inspect import inspect
from samx.errors import ParityError, UnavailableError, UsageError
from samx.exporters.base import Exported
from samx.models.spec import sam1_spec
from samx.progress import Progress
from samx.quantization.groups import QUANTISABLE
from samx.validators.report import ParityReport

pytestmark = pytest.mark.long

TESTS = Path(__file__).parent
SIZE_PX = 128
SPEC = sam1_spec(image_size=SIZE_PX, depth=1)
STORED_MOST = ("token MLP", "self-attention", "mask weights", "token projections", "upscaling 1")
SPARED = [group for group in QUANTISABLE if group not in STORED_MOST]  # fewer plans to judge
COMMAND = (sys.executable, "-c", "from samx.cli import main; main()")
CLICK: dict[str, Any] = {"point_coords": np.array([[60.0, 50.0]]), "point_labels": np.array([1])}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Put the toy into the registry, of this process and of those that it starts."""
    folders = [TESTS.parent, TESTS, TESTS / "toy_backend" / "site"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry, "BACKENDS", (*registry.BACKENDS, BACKEND))
        patched.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patched.setenv("COLUMNS", "200")
        yield


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the real command, whose registry has the toy."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=200,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    torch.save(toy_decoder(SPEC).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> samx.Artifact:
    """Export as users do, all options parsed."""
    out = checkpoint.parent / "toy"
    done = command(
        "export", checkpoint, "--target", "toy", "--loudness", 3, "--image-size", SIZE_PX, "-o", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(out)
    return samx.Artifact.open(out)


def evidence(artifact: samx.Artifact) -> dict[str, str]:
    assert all(one.passed for one in artifact.manifest.evidence)
    return {one.level: one.device for one in artifact.manifest.evidence}


# the command


def test_its_option_and_precision_are_shown_for_it_alone() -> None:
    own, other = (command("export", "--target", target, "--help").stdout for target in ("toy", "onnx"))
    for flag in ("--loudness", "--toy16"):
        assert flag in own
        assert flag not in other
    assert "How loud the toy is, up to 11. Default 1." in own
    assert "--split" in other
    assert "--split" not in own


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "onnx", "--loudness", "1"), "target 'onnx' has no such option: found --loudness"),
        (("--target", "toy", "--opset", "18"), r"target 'toy' has no such option: found --opset, .*--loudness"),
        (("--target", "onnx", "--toy16"), "target 'onnx' does not export this precision: found toy16"),
        (("--target", "toy", "--loudness", "12"), "the toy is not that loud: found --loudness 12, expected at most 11"),
        (("--target", "toy", "--toy16", "--min-iou", "0.99"), "only INT8 is calibrated: found --min-iou with toy16"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    arguments: tuple[str, ...], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    done = command("export", checkpoint, *arguments, "-o", tmp_path / "out")
    assert done.returncode == UsageError.exit_code
    assert re.search(words, " ".join(done.stderr.split()))
    assert list(tmp_path.iterdir()) == []


def test_doctor_lists_it() -> None:
    abilities = {one["name"]: one for one in json.loads(command("doctor", "--json").stdout)["abilities"]}
    assert abilities["run toy (Toy)"]["devices"] == ["toybox"]


def test_an_export_is_proven_as_graph_compiled_and_on_its_device(exported: samx.Artifact) -> None:
    assert evidence(exported) == {"graph": "cpu", "lowered": "toybox", "device": "toybox"}
    manifest = exported.manifest
    assert (manifest.target, manifest.precision, manifest.options["loudness"]) == ("toy", "fp32", 3)
    assert json.loads(exported.read("toy_lowering.json")) == {"loudness": 3}
    assert manifest.tools["toy"] == "1"


@pytest.mark.parametrize(("device", "level", "runtime"), [("cpu", "graph", "onnxruntime"), ("toybox", "device", "toy")])
def test_validate_judges_it_again(exported: samx.Artifact, device: str, level: str, runtime: str) -> None:
    done = command("validate", exported.path, "--device", device, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["passed"], found["level"], found["placement"]["runtime"]) == (True, level, runtime)


def test_a_device_that_it_has_not_is_refused(exported: samx.Artifact) -> None:
    with pytest.raises(UnavailableError, match=r"target 'toy' cannot run on 'cuda' here: found toybox, .*a toy box"):
        samx.validate(exported, device="cuda")


# the front door


def test_an_export_and_its_predictor_in_python(checkpoint: Path, tmp_path: Path) -> None:
    made = samx.export(
        checkpoint, tmp_path / "half", target="toy", precision="toy16", image_size=SIZE_PX, loudness=5
    )  # fmt: skip
    report = ParityReport.from_bytes(made.read("device_parity_report.json"), "report")
    assert report.bounds.precision == "fp16"
    assert report.placement["details"]["loudness"] == 5
    assert report.worst()["logit_error_relative"][0] > 1e-5  # it is rounded
    embedding = arrays(image_tensors(SPEC))["image_embeddings"]
    found = []
    for device in ("cpu", "toybox"):
        with samx.open(made, device=device) as predictor:
            predictor.set_image(embedding=embedding, original_size=(96, 128))
            found.append(predictor.predict(**CLICK, return_logits=True))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][0].shape == (3, 96, 128)


def test_python_refuses_the_toys_option_for_another_target(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such argument for target 'onnx': found loudness"):
        samx.export(checkpoint, tmp_path / "out", target="onnx", loudness=1)


# INT8


def test_int8_is_calibrated_judged_and_compiled(
    exported: samx.Artifact, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samx.quantization.rollout.HELD_OUT_SAMPLES", 16)
    monkeypatch.setattr("samx.quantization.search.JUDGED_EVERY", 4)
    embeddings, prompts = tmp_path / "embeddings", tmp_path / "set.npz"
    embeddings.mkdir()
    for i in range(6):
        np.save(embeddings / f"{i}.npy", arrays(image_tensors(SPEC, seed=i))["image_embeddings"])
    calibrate(prompts, checkpoint, image_size=SIZE_PX, embeddings=embeddings, samples=24)
    made = samx.export(
        checkpoint, tmp_path / "int8", target="toy", precision="int8", image_size=SIZE_PX, calibration=prompts,
        exclude=SPARED,
    )  # fmt: skip
    assert evidence(made) == {"graph": "cpu", "lowered": "toybox", "device": "toybox"}
    assert made.manifest.options["int8"]["stored"]
    sizes = [one.manifest.files["decoder.toy"].bytes for one in (made, exported)]
    assert sizes[0] < 0.5 * sizes[1]
    said = json.loads(made.read("int8_report.json"))
    assert "a toy box" in said["speed"]["reason"]


# kits, sizes, files


def test_a_kit_is_for_the_devices_of_its_entry(exported: samx.Artifact, tmp_path: Path) -> None:
    result = bundle(exported.path, tmp_path / "kit.zip")
    assert result["devices"] == ("toybox",)
    with zipfile.ZipFile(result["path"]) as archive:
        text = archive.read("samx-kit/README.txt").decode()
    assert "python3 samx.pyz validate artifact --device toybox" in text


def test_the_files_that_it_opens_are_its_size(exported: samx.Artifact) -> None:
    [subject] = open_subjects([exported.path], "toybox", 1)
    files = exported.manifest.files
    assert subject.described.bytes == files["decoder.toy"].bytes
    assert BACKEND.opened(exported.manifest, "cpu") == [files["decoder.onnx"]]
    uncompiled = {"decoder.onnx": FileEntry("0" * 64, 7, "decoder")}
    assert BACKEND.opened(replace(exported.manifest, evidence=(), files=uncompiled), "toybox")[0].bytes == 7


def test_inspect_describes_its_file(exported: samx.Artifact) -> None:
    found: dict[str, Any] = inspect(exported.path / "decoder.toy")
    assert (found["kind"], found["marked"]) == ("toy", True)


def test_a_compiler_that_changes_the_answers_leaves_nothing(
    exported: samx.Artifact, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = compiler.lower

    def known(graphs: object, job: object, directory: Path) -> Exported:
        (directory / compiler.GRAPH_FILE).write_bytes(exported.read(compiler.GRAPH_FILE))
        return Exported({compiler.GRAPH_FILE: "decoder"}, {}, {})

    def rounding(directory: Path, manifest: Manifest, progress: Progress) -> Lowered:
        done, engine = lower(directory, manifest, progress), directory / compiler.ENGINE_FILE
        engine.write_bytes(engine.read_bytes().removeprefix(compiler.MARK))
        exporter.round_weights(engine)
        return done

    monkeypatch.setattr(compiler, "lower", rounding)
    monkeypatch.setattr(exporter, "write", known)  # traced once is enough
    with pytest.raises(ParityError, match="fp32, toy on toybox: mask_iou_mean is"):
        samx.export(checkpoint, tmp_path / "out", target="toy", image_size=SIZE_PX)
    assert list(tmp_path.iterdir()) == []
