"""INT8 of the demo models, as `samx export --int8` makes it with nothing else said."""

from __future__ import annotations

from pathlib import Path

import pytest

from samx.commands.export import ExportRequest, export
from samx.commands.validate import validate
from samx.quantization.rollout import HELD_OUT_SAMPLES


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_a_demo_model_in_int8_passes_its_gate(family: str, tmp_path: Path) -> None:
    result = export(ExportRequest(tmp_path / "out", family=family, precision="int8"))
    report = result.int8
    assert report is not None
    found, accuracy = report.search, report.held_out.accuracy
    assert report.held_out.failures() == []
    assert report.held_out.parity.metrics["mask_iou_mean"] >= 0.98
    assert report.held_out.parity.metrics["mask_iou_p05"] >= 0.95
    assert accuracy.masks == HELD_OUT_SAMPLES == 48
    assert accuracy.lost is not None
    assert accuracy.lost <= 0.01
    assert result.manifest.files["decoder.onnx"].bytes <= 0.45 * found.float_bytes
    assert [line for line in result.notes if "float here" in line]
    assert validate(result.path).passed
