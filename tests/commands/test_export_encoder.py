"""An artifact's image encoder is judged from bytes to masks: at the export, and wherever it is validated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from samx.artifacts.commit import seal
from samx.artifacts.store import Artifact
from samx.commands.export import ENCODER_SUITE_FILE, REPORT_FILE, ExportRequest, export
from samx.commands.proof import advice
from samx.errors import ParityError
from samx.models.shape_range import ShapeRange
from samx.validators.child import gate_in_child
from samx.validators.report import ParityReport

pytestmark = pytest.mark.long

ENCODER, BATCHES = "encoder.onnx", ShapeRange(1, 2, 3)
PICTURES = 5 + 6 + 6  # one by one, in twos and in threes


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the demo model, small."""
    out = tmp_path_factory.mktemp("exported") / "demo"
    export(ExportRequest(out, image_size=128, pictures=BATCHES))
    return out


def copied(artifact: Path, to: Path, change: Callable[[Path], Mapping[str, Any] | None]) -> Path:
    """Copy an artifact, change it, and seal it as if nothing had happened."""
    target = to / "copy"
    shutil.copytree(artifact, target)
    manifest = Artifact.open(artifact).manifest
    options = change(target)
    (target / "manifest.json").unlink()
    roles = {name: file.role for name, file in manifest.files.items() if (target / name).exists()}
    seal(target, replace(manifest, files={}, options=options or manifest.options), roles)
    return target


def test_export_judges_the_encoder_in_each_number_of_pictures(artifact: Path) -> None:
    report = ParityReport.from_bytes((artifact / REPORT_FILE).read_bytes(), "it")
    assert report.passed
    assert report.encoder is not None
    assert len(report.encoder.cases) == report.encoder.suite["cases"] == PICTURES
    assert report.encoder.suite["resizer"] == "compared"
    assert report.encoder.metrics["mask_iou_mean"] > 0.9999


def _weights(change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Path], None]:
    """Change the largest weights of the encoder's graph."""

    def plant(directory: Path) -> None:
        model = onnx.load(directory / ENCODER)
        tensor = max(model.graph.initializer, key=lambda one: np.prod(one.dims))
        changed = np.asarray(change(numpy_helper.to_array(tensor).copy()), np.float32)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        onnx.save(model, directory / ENCODER)

    return plant


def _padding(directory: Path) -> None:
    """Read `valid` as width and height."""
    model = onnx.load(directory / ENCODER)
    turned = onnx.helper.make_node("Gather", ["valid", "turned_order"], ["turned_valid"], axis=1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "turned_order"))
    for node in model.graph.node:
        node.input[:] = ["turned_valid" if name == "valid" else name for name in node.input]
    model.graph.node.insert(0, turned)
    onnx.save(model, directory / ENCODER)


FAULTS: Mapping[str, Callable[[Path], None]] = {
    # Not all by the same factor: the norm behind them takes that out, rightly. They are the deepest layer's, which
    # matters little: 0.1 % costs 2.7e-6 of the features, which is within the bound of 1e-5; 2 % is beyond it.
    "weights of a checkpoint that was trained on": _weights(
        lambda weights: weights * np.random.default_rng(0).uniform(0.98, 1.02, weights.shape)
    ),
    "a channel that is lost": _weights(lambda weights: np.concatenate([weights[:-1], 0 * weights[-1:]])),
    "valid as width and height": _padding,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_the_encoder_s_file_is_caught(artifact: Path, tmp_path: Path, fault: str) -> None:
    report = gate_in_child(copied(artifact, tmp_path, FAULTS[fault]), level="graph")
    assert not report.passed
    assert report.failures == ()
    assert all(case.passed for case in report.cases), "the decoder is right"
    assert report.all_failures()[0].startswith("encoder: ")
    encoder = Artifact.open(artifact).manifest.encoder
    assert encoder is not None
    assert advice(report, encoder, "Of the decoder.").endswith("encoder: '--no-encoder' exports the decoder alone.")
    assert "'--encoder-precision fp32'" in advice(report, replace(encoder, precision="bf16"), "Of the decoder.")
    both = replace(report, failures=("the decoder too",))
    assert advice(both, encoder, "Of the decoder.") == "Of the decoder."


def _without_pictures(directory: Path) -> None:
    (directory / ENCODER_SUITE_FILE).unlink()


def _other_square(directory: Path) -> Mapping[str, Any]:
    options = Artifact.open(directory).manifest.options
    return {**options, "encoder": {**options["encoder"], "picture_px": 64}}


@pytest.mark.parametrize(
    ("change", "said"),
    [(_without_pictures, "encoder_cases"), (_other_square, "the pictures are for another encoder")],
)
def test_encoder_that_cannot_be_judged_gives_no_verdict(
    artifact: Path, tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    with pytest.raises(ParityError, match="gave no verdict") as caught:
        gate_in_child(copied(artifact, tmp_path, change), level="graph")
    assert said in str(caught.value)


def test_decoder_alone_says_so(tmp_path: Path) -> None:
    report = export(ExportRequest(tmp_path / "alone", image_size=128, encoder=False)).report
    assert report.encoder is None
    assert report.summary().endswith("; no image encoder")
    assert not (tmp_path / "alone" / ENCODER_SUITE_FILE).exists()
