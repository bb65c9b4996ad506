"""From a photo to its masks through an exported file: what EfficientSAM's own steps give with the same checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientsam_upstream import EfficientSam, efficient_sam, state
from torch.nn import functional as F
from upstream_predictors import iou

import samx
from samx.demo.scenes import generate_scene
from samx.errors import UsageError
from samx.processing.frames import Frame
from samx.processing.images import to_levels
from samx.processing.postprocess import picture_logits
from samx.validators.pictures import LEVELS_APART, framed

pytestmark = pytest.mark.long

SIZE_PX = 128
SHAPES = ((300, 200), (180, 400), (128, 128))  # (H, W)
ERROR, IOU = 5e-5, 0.9998  # of the largest; of a prompt's masks together, of which the smallest has 563 pixels
POINTS = [[60.0, 50.0], [20.0, 30.0], [100.0, 70.0], [5.0, 80.0], [90.0, 10.0], [0.0, 0.0]]
CORNERS = [[10.0, 15.0], [110.0, 85.0]]
PROMPTS: dict[str, tuple[int, int, list[int]]] = {  # points, corners, labels as upstream takes them
    "point": (1, 0, [1]), "background": (2, 0, [0, 0]), "box": (0, 2, [2, 3]),
    "box and points": (3, 2, [1, 0, 1, 2, 3]), "six points": (6, 0, [1, 0, 1, 1, 0, 1]),
}  # fmt: skip


@pytest.fixture(scope="module")
def upstream() -> EfficientSam:
    return efficient_sam(SIZE_PX)


@pytest.fixture(scope="module")
def artifact(upstream: EfficientSam, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("efficientsam")
    torch.save(state(upstream), folder / "efficient_sam_vitt.pt")
    return samx.export(folder / "efficient_sam_vitt.pt", folder / "artifact", masks="all", image_size=SIZE_PX)


def photo(shape: tuple[int, int]) -> Any:
    return np.asarray(generate_scene(900_003, shape[::-1]).image)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_photo_gives_upstreams_masks(upstream: EfficientSam, artifact: Any, shape: tuple[int, int]) -> None:
    picture = torch.from_numpy(photo(shape).copy()).permute(2, 0, 1)[None] / 255
    with samx.open(artifact) as predictor:
        predictor.set_image(photo(shape))
        for name, (clicks, corners, labels) in PROMPTS.items():
            coords, codes = (np.array(POINTS[:clicks]), np.array(labels[:clicks])) if clicks else (None, None)
            box = np.array(CORNERS).ravel() if corners else None
            found, scores, low_res = predictor.predict(coords, codes, box, return_logits=True)
            logits, iou_expected, low = (
                value.numpy() for value in upstream.predict(picture, [*POINTS[:clicks], *CORNERS[:corners]], labels)
            )
            for ours, theirs in ((found, logits), (scores, iou_expected), (low_res, low)):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=ERROR * np.abs(theirs).max(), err_msg=name)
            assert iou(np.float32(found > 0), np.float32(logits >= 0)) >= IOU, name


def test_every_prompt_of_the_gate_is_one_of_its_own(artifact: Any) -> None:
    from samx.validators.cases import parity_cases

    spec = artifact.manifest.spec
    for most in (None, 8, 6):
        cases = {case.name: case.prompts["point_labels"] for case in parity_cases(spec, most_points=most)}
        full = {
            name: labels
            for name, labels in cases.items()
            if name not in ("padding_only", "padding_twice", "bare_point")
        }
        assert {labels.shape[1] for labels in full.values()} == {6}
        assert (full["many_points"] >= 0).all()
        assert {"points_6", "box", "box_and_points", "borders", "no_points"} <= set(full)


def test_a_previous_mask_is_refused(artifact: Any) -> None:
    with samx.open(artifact) as predictor:
        predictor.set_image(photo((90, 120)))
        *_, low_res = predictor.predict(point_coords=[POINTS[0]], point_labels=[1])
        with pytest.raises(UsageError, match="EfficientSAM takes no mask prompts"):
            predictor.predict(point_coords=[POINTS[0]], point_labels=[1], mask_input=low_res[:1])


@pytest.mark.parametrize(
    ("option", "said"), [({"mask_input": True}, "no mask prompts"), ({"points": "1:4:5"}, "has 6")]
)
def test_what_it_has_no_room_for_is_refused(
    upstream: EfficientSam, tmp_path: Path, option: dict[str, Any], said: str
) -> None:
    torch.save(state(upstream), tmp_path / "model.pt")
    with pytest.raises(UsageError, match=said):
        samx.export(tmp_path / "model.pt", tmp_path / "out", image_size=SIZE_PX, **option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(301, 200), (33, 500), (128, 128), (7, 3)])
def test_pictures_are_resized_as_torch_does_without_antialiasing(artifact: Any, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    frame = Frame.of(artifact.manifest.spec, shape[1], shape[0])
    expected = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), (SIZE_PX, SIZE_PX), mode="bilinear"
    )
    right = expected[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(to_levels(image, frame), right, rtol=0, atol=0.01)
    assert np.abs(framed(image, frame) - right).max() <= LEVELS_APART


@pytest.mark.parametrize("shape", [(301, 200), (33, 500), (128, 128), (7, 3)])
def test_logits_are_resized_as_torch_does_with_cubic_polynomials(artifact: Any, shape: tuple[int, int]) -> None:
    logits = 20 * np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(logits)[None, None], shape, mode="bicubic")[0, 0].numpy()
    found = picture_logits(logits, Frame.of(artifact.manifest.spec, shape[1], shape[0]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
