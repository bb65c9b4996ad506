"""bfloat16 as a precision of an export: asked for by name, judged on held-out prompts, refused where it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exports import job_for
from openvino_toys import BFLOAT16, capabilities

from samx.artifacts.store import Artifact
from samx.commands.export import ExportRequest, export
from samx.commands.validate import validate
from samx.demo import demo_checkpoint
from samx.errors import SamxError, UnavailableError, UsageError
from samx.models.checkpoint import load_checkpoint
from samx.progress import silent
from samx.quantization.int8 import calibration_set
from samx.runtimes.openvino import open_artifact
from samx.validators.metrics import BOUNDS


def request(out: Path, **changes: Any) -> ExportRequest:
    asked = ExportRequest(out, target="openvino", precision="bf16", options={"split": True})
    return replace(asked, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "onnx"}, "target 'onnx' does not export this precision: found bf16"),
        ({"target": "trt"}, "target 'trt' does not export this precision: found bf16"),
        ({"embeddings": (Path("a.npz"),)}, "bf16 is judged on prompts that a calibration set holds out"),
        ({"min_iou": 0.99}, "only INT8 is calibrated: found --min-iou with bf16"),
        ({"exclude": ("upscaling 1",)}, "only INT8 is calibrated: found --exclude with bf16"),
        ({"options": {"keep_float32": ("sums",)}}, "target 'openvino' has no such option: found --keep-float32"),
        ({"precision": "fp32", "calibration": Path("set.npz")}, "only INT8 is calibrated: found --calibration"),
    ],
)
def test_requests_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        export(request(tmp_path / "out", **changes))
    assert list(tmp_path.iterdir()) == []


def test_no_bound_is_below_those_of_int8() -> None:
    half, int8 = BOUNDS["bf16"], BOUNDS["int8"]
    assert (half.mask_iou_mean, half.mask_iou_p05) == (int8.mask_iou_mean, int8.mask_iou_p05)
    assert half.logit_error_relative < int8.logit_error_relative
    assert (half.flipped_share, half.iou_prediction_error, half.object_score_error) == (
        int8.flipped_share, int8.iou_prediction_error, int8.object_score_error,
    )  # fmt: skip


def test_a_checkpoint_whose_scenes_are_not_known_needs_a_set(tmp_path: Path) -> None:
    loaded = load_checkpoint(demo_checkpoint("sam1"))
    job = job_for("openvino", loaded, loaded.spec, "bf16")
    with pytest.raises(UsageError, match=r"needs a calibration set .*samx calibrate CHECKPOINT"):
        calibration_set(job, "bf16", tmp_path / "mine.pth", None, silent)
    with pytest.raises(SamxError, match=r"calibration set '.*missing\.npz' does not exist"):
        calibration_set(job, "bf16", tmp_path / "mine.pth", tmp_path / "missing.npz", silent)


@pytest.mark.slow
def test_the_demo_model_is_exported_and_judged_in_bfloat16(tmp_path: Path) -> None:
    out = tmp_path / "bf16"
    if BFLOAT16 not in capabilities():
        with pytest.raises(UnavailableError, match="this processor does not compute in bfloat16"):
            export(request(out))
        assert list(tmp_path.iterdir()) == []
        return
    result = export(request(out))
    assert result.report.bounds.precision == "bf16"
    assert result.report.metrics["mask_iou_p05"] > 0.98
    assert len(result.report.cases) == 52
    assert str(result.report.suite["image_source"]).startswith("demo scenes 8000")
    assert validate(out).passed
    products = open_artifact(Artifact.open(out)).placement().details["products"]
    assert max(products, key=products.__getitem__) == "bf16"
