"""The demo models as Core ML packages, as a user makes them: bounds, size, and what can be done with them here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from samx.artifacts.store import Artifact
from samx.commands.export import ExportRequest, ExportResult, export
from samx.commands.segment import segment_picture
from samx.commands.validate import validate
from samx.demo.picture import PICTURE_SIZE_PX, write_picture
from samx.errors import ArtifactError
from samx.exporters.coreml.export import SWIFT_FILE
from samx.models.shape_range import ShapeRange
from samx.processing.prompts import Prompt
from samx.segmenting import Asked

MOST_BYTES = 10_000_000  # of all functions together, in float16
FLOAT32_LOGIT = 1e-4
FLOAT16 = {"mask_iou_case": 0.99, "mask_iou_mean": 0.998, "iou_prediction_error": 0.01}


def package_bytes(path: Path) -> int:
    """Count the bytes of the decoder, without its image encoder."""
    files = (file for file in path.glob("*.mlpackage/**/*") if not file.is_relative_to(path / "encoder.mlpackage"))
    return sum(file.stat().st_size for file in files if file.is_file())


def worst(result: ExportResult, metric: str) -> float:
    values = [case.metrics[metric] for case in result.report.cases]
    return min(values) if "iou_case" in metric else max(values)


def keeps_float16_bounds(result: ExportResult) -> bool:
    return (
        worst(result, "mask_iou_case") >= FLOAT16["mask_iou_case"]
        and result.report.metrics["mask_iou_mean"] >= FLOAT16["mask_iou_mean"]
        and worst(result, "iou_prediction_error") <= FLOAT16["iou_prediction_error"]
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """Export for small frames with two functions, in the default precision; the usual ones the slow tests export."""
    out, options = tmp_path_factory.mktemp("coreml") / "sam1", {"points": ShapeRange(2, 2, 4)}
    return export(ExportRequest(out=out, target="coreml", image_size=512, options={**options}))


def test_the_demo_model_keeps_its_masks_in_ten_megabytes(exported: ExportResult) -> None:
    assert exported.report.passed
    assert exported.manifest.precision == "fp16"  # what the Neural Engine computes in, without being asked
    assert keeps_float16_bounds(exported)
    assert package_bytes(exported.path) <= MOST_BYTES
    assert [evidence.level for evidence in exported.manifest.evidence] == ["graph"]
    assert exported.manifest.evidence[0].runtime == "mil"
    assert (exported.path / SWIFT_FILE).is_file()
    assert "a lint and no measurement" in exported.notes[0]
    assert exported.next_step is not None
    assert "--device cpu+ane" in exported.next_step


@pytest.mark.slow
def test_it_is_judged_again_from_its_files(exported: ExportResult) -> None:
    report = validate(exported.path)
    assert report.passed
    assert report.level == "graph"
    assert report.placement["runtime"] == "mil"


def test_it_segments_a_picture(exported: ExportResult, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    write_picture(picture)
    width, height = PICTURE_SIZE_PX
    box = (0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height)
    found = segment_picture(picture, exported.path, Asked((Prompt(box=box),)), [tmp_path / "drawn.png"])
    (mask,) = found.masks
    assert mask.shape == (height, width)
    assert mask.any()
    assert (tmp_path / "drawn.png").exists()


def test_an_altered_weight_is_refused(exported: ExportResult, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported.path, tmp_path / "copy"))
    weights = next(copy.rglob("weight.bin"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="was altered"):
        Artifact.open(copy)


SLOW: dict[str, dict[str, Any]] = {
    "sam1": {},
    "sam2": {"family": "sam2"},
    "sam2_apple": {"family": "sam2", "options": {"contract": "apple"}},
    "sam1_masks": {"masks": "all", "mask_input": True},
    "sam2_single_ios17": {"family": "sam2", "masks": "single", "mask_input": True, "options": {"ios": 17}},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", SLOW.values(), ids=list(SLOW))
def test_every_kind_keeps_float16_s_bounds(changes: dict[str, Any], tmp_path: Path) -> None:
    result = export(ExportRequest(out=tmp_path / "out", target="coreml", precision="fp16", **changes))
    assert keeps_float16_bounds(result)
    assert package_bytes(result.path) <= MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_float32_packages_agree_to_a_ten_thousandth(family: Any, tmp_path: Path) -> None:
    result = export(ExportRequest(out=tmp_path / "out", target="coreml", precision="fp32", family=family))
    assert worst(result, "logit_error") <= FLOAT32_LOGIT
