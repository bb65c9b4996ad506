"""The automatic mode finds what Meta's generators find, in their order, and refuses what cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from automatic_toys import Blobs, compared, metas_generator, metas_surroundings  # noqa: F401
from toys import image_tensors, toy_checkpoint
from upstream_predictors import answer_with, metas_demo_predictor, metas_predictor, our_predictor

import samx
from samx.demo.scenes import generate_scene
from samx.errors import UsageError
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.predictor import Predictor

SPECS: dict[str, DecoderSpec] = {
    make().family: make(image_size=256, masks="all", mask_input=True) for make in (sam1_spec, sam2_spec)
}
# Masks are resized to other last bits than PyTorch's: a pixel whose logit lies that near a threshold may change sides.
FLIPPED_PX = 2
BOTH: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything passes": {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0},
    "nothing passes": {"pred_iou_thresh": 1.0},
    "other thresholds": {
        "pred_iou_thresh": 0.8, "stability_score_thresh": 0.9, "stability_score_offset": 0.3, "box_nms_thresh": 0.4,
    },
    "batches of seven": {"points_per_batch": 7},
    "crops": {
        "crop_n_layers": 2, "crop_nms_thresh": 0.5, "crop_overlap_ratio": 0.5, "crop_n_points_downscale_factor": 2,
    },
    "own grids": {
        "points_per_side": None, "crop_n_layers": 1,
        "point_grids": [np.array([[0.3, 0.3], [0.6, 0.7]]), np.array([[0.5, 0.5], [0.1, 0.9], [0.2, 0.2]])],
    },
    "small regions": {"min_mask_region_area": 30},
    "small regions of crops": {"min_mask_region_area": 30, "crop_n_layers": 1},
}  # fmt: skip
SAM2S: dict[str, dict[str, Any]] = {
    "masks fed back": {"use_m2m": True},
    "masks fed back and mended": {"use_m2m": True, "min_mask_region_area": 30},
    "one mask a click": {"multimask_output": False},
    "another threshold": {"mask_threshold": 1.5},
}
CASES = [("sam1", name) for name in BOTH] + [("sam2", name) for name in {**BOTH, **SAM2S}]


def both(family: str, settings: dict[str, Any], size: tuple[int, int]) -> tuple[list[Any], list[Any]]:
    """Let ours and Meta's generator look at the same logits and scores."""
    spec = SPECS[family]
    session, images = Blobs(spec), [image_tensors(spec)]
    picture = np.zeros((*size, 3), np.uint8)
    ours = list(our_predictor(session, images).everything(picture, **{"points_per_side": 8, **settings}))
    meta = metas_predictor(toy_checkpoint(spec), images)
    answer_with(meta, session)
    generator = metas_generator(meta, family, **{"points_per_side": 8, **settings})
    return ours, generator.generate(picture)


def assert_same(ours: list[Any], metas: list[Any]) -> None:
    """Compare masks in their order; all but single pixels is equal."""
    assert len(ours) == len(metas)
    for mine, theirs in zip(ours, metas, strict=True):
        assert list(mine) == list(theirs)
        assert mine["segmentation"].shape == theirs["segmentation"].shape
        assert np.count_nonzero(mine["segmentation"] != theirs["segmentation"]) <= FLIPPED_PX
        assert mine["area"] == np.count_nonzero(mine["segmentation"])
        assert mine["predicted_iou"] == theirs["predicted_iou"]
        assert (mine["bbox"], mine["crop_box"]) == (theirs["bbox"], theirs["crop_box"])
        np.testing.assert_allclose(mine["point_coords"], theirs["point_coords"], rtol=1e-6)
        np.testing.assert_allclose(mine["stability_score"], theirs["stability_score"], atol=1e-3)


@pytest.mark.usefixtures("metas_surroundings")
@pytest.mark.filterwarnings("error:.*Skipping the post-processing step.*")
@pytest.mark.parametrize(("family", "case"), CASES, ids=[f"{family}-{case}" for family, case in CASES])
def test_given_logits_are_chosen_and_ordered_as_metas_generator_does(family: str, case: str) -> None:
    ours, metas = both(family, {**BOTH, **SAM2S}[case], (90, 120))
    assert len(metas) > 5 or case in ("nothing passes", "own grids")
    assert_same(ours, metas)


@pytest.mark.usefixtures("metas_surroundings")
def test_the_comparison_notices_other_masks_and_another_order() -> None:
    ours, metas = both("sam1", {}, (90, 120))
    assert_same(ours, metas)
    other, _ = both("sam1", {"box_nms_thresh": 0.6}, (90, 120))
    for wrong in (ours[::-1], ours[1:], other):
        with pytest.raises(AssertionError):
            assert_same(wrong, metas)


def ready(spec: DecoderSpec) -> Predictor:
    return our_predictor(Blobs(spec), [image_tensors(spec)])


def test_the_picture_that_is_set_is_looked_at_and_stays_set() -> None:
    predictor, picture = ready(SPECS["sam1"]), np.zeros((90, 120, 3), np.uint8)
    given = list(predictor.everything(picture, points_per_side=4))
    assert not predictor.is_image_set
    other = ready(SPECS["sam1"])
    other.set_image(picture)
    assert_same(list(other.everything(points_per_side=4)), given)
    assert other.is_image_set
    with pytest.raises(UsageError, match="crops and tiles are cut from the picture, and none is given"):
        other.everything(crop_n_layers=1)
    with pytest.raises(UsageError, match="no image is set"):
        predictor.everything()


def test_masks_come_in_the_form_that_is_asked_for() -> None:
    picture = np.zeros((90, 120, 3), np.uint8)
    masks = [record["segmentation"] for record in ready(SPECS["sam2"]).everything(picture, points_per_side=4)]
    runs = list(ready(SPECS["sam2"]).everything(picture, points_per_side=4, output_mode="uncompressed_rle"))
    assert [sum(record["segmentation"]["counts"][1::2]) for record in runs] == [mask.sum() for mask in masks]
    assert len(masks) > 2


def test_what_the_export_has_not_is_refused_before_the_work() -> None:
    picture = np.zeros((90, 120, 3), np.uint8)
    refused: list[tuple[DecoderSpec, dict[str, Any], str]] = [
        (
            sam2_spec(image_size=256, mask_input=True), {"use_m2m": True},
            "multimask_output=False is asked of an artifact",
        ),
        (sam2_spec(image_size=256, masks="all"), {"use_m2m": True}, "takes no mask_input"),
        (sam1_spec(image_size=256, masks="single"), {}, "multimask_output=True is asked of an artifact"),
    ]  # fmt: skip
    for spec, settings, words in refused:
        predictor = ready(spec)
        with pytest.raises(UsageError, match=words):
            predictor.everything(picture, **settings)


def test_progress_is_told_for_each_batch() -> None:
    told: list[tuple[int, int]] = []
    picture = np.zeros((90, 120, 3), np.uint8)
    ready(SPECS["sam1"]).everything(
        picture, points_per_side=5, points_per_batch=10, crop_n_layers=1,
        progress=lambda _, done=0, total=0: told.append((done, total)),
    )  # fmt: skip
    assert told == [(n, 15) for n in range(15)]


@pytest.mark.usefixtures("metas_surroundings")
@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize("seed", [900_003, 900_104])
def test_an_artifact_finds_what_metas_generator_finds(family: str, seed: int, request: pytest.FixtureRequest) -> None:
    """The same weights, decoded here and there; the demo model's masks are less stable than the defaults ask for."""
    scene = np.ascontiguousarray(generate_scene(seed, (320, 240)).image)
    thresholds: dict[str, Any] = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.7}
    artifact: Path = request.getfixturevalue("sam2_artifact" if family == "sam2" else "all_masks_artifact")
    with samx.open(artifact) as ours:
        found = list(ours.everything(scene, points_per_side=8, **thresholds))
        meta = metas_demo_predictor(family, ours.spec.image_size)
    metas = metas_generator(meta, family, points_per_side=8, **thresholds).generate(scene)
    comparison = compared(found, metas, *thresholds.values())
    print(comparison)  # noqa: T201 - the exceptions, counted
    assert comparison.unexplained == []
    assert comparison.swapped == 0
    assert comparison.same > 1
    assert comparison.least_iou > 0.999
