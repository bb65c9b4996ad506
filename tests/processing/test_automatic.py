"""What the automatic mode is made of: runs, boxes, crops, regions, settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samx.errors import UsageError
from samx.models.families import known
from samx.models.spec import family_spec, sam1_spec, sam2_spec
from samx.processing.automatic import plan
from samx.processing.boxes import crop_boxes, suppress_overlaps
from samx.processing.regions import mended_logits, without_small_holes, without_small_islands
from samx.processing.rle import Masks, Rle
from samx.processing.settings import Settings

SAM1, SAM2 = sam1_spec(), sam2_spec()


def test_boxes_that_end_at_the_last_pixel_are_not_the_same() -> None:
    """Two masks of nine rows, in columns 0 to 8 and 1 to 10: with boxes to the next pixel it would be 0.727."""
    boxes = np.array([[0, 0, 8, 8], [1, 0, 10, 8]])
    scores = np.array([0.99, 0.98], np.float32)
    assert suppress_overlaps(boxes, scores, 0.7).tolist() == [0, 1]
    assert suppress_overlaps(boxes + np.array([0, 0, 1, 1]), scores, 0.7).tolist() == [0]


def test_overlaps_are_suppressed_only_above_the_limit_and_of_equals_the_first_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 8], [20, 20, 30, 30], [20, 20, 30, 30]])
    scores = np.array([0.9, 0.95, 0.5, 0.7, 0.7], np.float32)
    assert suppress_overlaps(boxes, scores, 0.7).tolist() == [1, 0, 3]  # IoU 0.7 with the best stays, 7/8 goes
    assert suppress_overlaps(boxes[:0], scores[:0], 0.7).tolist() == []


def test_an_overlap_is_compared_in_float64() -> None:
    """4/5 is a little more in float32 than in float64, and torchvision's kernel compares it so."""
    boxes, scores = np.array([[0, 0, 5, 5], [0, 0, 5, 4]]), np.array([0.9, 0.8], np.float32)
    assert suppress_overlaps(boxes, scores, 0.8).tolist() == [0]


def test_boxes_one_pixel_wide_are_the_same_as_none() -> None:
    boxes, scores = np.array([[3, 3, 3, 9], [3, 3, 3, 9]]), np.array([0.9, 0.8], np.float32)
    assert suppress_overlaps(boxes, scores, 0.0).tolist() == [0, 1]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (30, 41)])
def test_runs_hold_a_mask(share: float, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    rle = Rle.of(mask)
    np.testing.assert_array_equal(rle.mask(), mask)
    assert rle.area_px == mask.sum()
    assert rle.counts.sum() == mask.size
    assert (rle.counts[1:] > 0).all()
    column_major = mask.T.ravel()
    changes = np.flatnonzero(np.diff(column_major)) + 1
    expected = np.diff(np.r_[0, changes, mask.size])
    assert rle.counts.tolist() == ([0] if column_major[0] else []) + expected.tolist()


def test_runs_of_a_part_are_those_of_the_whole() -> None:
    whole = np.zeros((20, 30), np.bool_)
    whole[:, 4:6] = True  # whole columns, whose runs join
    whole[3:9, 6:20] = np.random.default_rng(1).random((6, 14)) < 0.5
    part = Rle.of_part(whole[:, 4:20], (4, 0), (30, 20))
    assert part.counts.tolist() == Rle.of(whole).counts.tolist()
    masks = Masks([part, part])
    assert len(masks[:1]) == 1
    np.testing.assert_array_equal(masks[1], whole)


def test_runs_are_packed_as_coco_does() -> None:
    from pycocotools import mask as coco

    mask = np.random.default_rng(2).random((37, 53)) < 0.3
    packed = Rle.of(mask).coco()
    expected = coco.encode(np.asfortranarray(mask, np.uint8))
    assert packed == {"size": list(expected["size"]), "counts": expected["counts"].decode()}
    np.testing.assert_array_equal(coco.decode(packed), mask)


def test_small_holes_and_islands_go() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[2:12, 2:12] = True
    mask[5, 5] = mask[6, 6] = False  # they touch at a corner: one hole of two
    mask[8, 8] = False
    mask[15, 15] = True
    filled, changed = without_small_holes(mask, 2)
    assert changed
    assert (filled[8, 8], filled[5, 5], filled[15, 15]) == (True, False, True)
    kept, changed = without_small_islands(mask, 2)
    assert changed
    assert (kept[15, 15], kept[3, 3], kept[8, 8]) == (False, True, False)
    assert not without_small_holes(mask, 1)[1]
    assert not without_small_islands(mask, 1)[1]
    assert not without_small_islands(np.zeros((3, 3), np.bool_), 9)[1]


def test_of_small_islands_alone_the_largest_stays_and_of_equals_the_one_that_opencv_meets_first() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[0, 8] = mask[1, 0] = mask[5, 5] = True  # block by block, that in the second row comes first
    kept, _ = without_small_islands(mask, 4)
    assert np.argwhere(kept).tolist() == [[1, 0]]
    mask[6, 5] = True
    kept, _ = without_small_islands(mask, 4)
    assert np.argwhere(kept).tolist() == [[5, 5], [6, 5]]


def test_logits_are_mended_where_the_mask_was() -> None:
    low_res = np.full((8, 8), -3.0, np.float32)
    low_res[1:6, 1:6] = 4
    low_res[3, 3], low_res[7, 7] = -2, 5
    mended = mended_logits(low_res, 0.0, 1)
    assert (mended[3, 3], mended[7, 7]) == (10, -10)
    low_res[3, 3], low_res[7, 7] = 10, -10
    np.testing.assert_array_equal(mended, low_res)


def test_each_family_has_its_own_thresholds() -> None:
    found = {name: Settings.of(family_spec(name), {}).pred_iou_thresh for name in known()}
    assert found == {"sam1": 0.88, "sam2": 0.8, "sam3": 0.88, "sam_hq": 0.88, "sam_hq2": 0.8, "efficientsam": 0.7}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"points_per_side": 0}, "points_per_side is out of range: found 0, expected a whole number from 1"),
        ({"points_per_side": 2.5}, "points_per_side is out of range: found 2.5"),
        ({"points_per_batch": True}, "points_per_batch is out of range"),
        ({"pred_iou_thresh": 1.2}, "pred_iou_thresh is out of range: found 1.2, expected a number from 0 to 1"),
        ({"stability_score_thresh": float("nan")}, "stability_score_thresh is out of range: found nan"),
        ({"box_nms_thresh": -0.1}, "box_nms_thresh is out of range"),
        ({"crop_n_layers": 9}, "crop_n_layers is out of range"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio is out of range"),
        ({"crop_n_layers": 3, "points_per_side": 4, "crop_n_points_downscale_factor": 2},
         "layer 3 of the crops has no points"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is out of range"),
        ({"output_mode": "png"}, "output_mode is unknown: found 'png', expected binary_mask or"),
        ({"points_per_side": 8, "point_grids": [[[0.5, 0.5]]]}, "are both given"),
        ({"point_grids": [], "crop_n_layers": 1}, "point_grids are fewer than the layers: found 0, expected 2"),
        ({"point_grids": [[[0.5, 1.5]]]}, "has points outside: found 0.5 to 1.5"),
        ({"point_grids": [[0.5, 0.5]]}, "has the wrong shape"),
        ({"point_grids": [["a", "b"]]}, "point_grids hold no numbers"),
        ({"points": 8}, "has no such setting: found points, expected pred_iou_thresh"),
        ({"use_m2m": True}, "SAM's automatic mode has no use_m2m"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Settings.of(SAM1, settings)


def test_a_tiny_picture_is_not_cut_into_nothing() -> None:
    settings = Settings.of(SAM2, {"crop_n_layers": 5, "crop_overlap_ratio": 0.0})
    with pytest.raises(UsageError, match="crop_n_layers cuts this picture into crops without pixels"):
        plan(settings, SAM2, 20, 9)


def test_crops_cover_the_picture() -> None:
    covered = np.zeros((333, 500), np.int64)
    for layer, (x0, y0, x1, y1) in crop_boxes(500, 333, 2, 0.3)[1:]:
        covered[y0:y1, x0:x1] |= 1 << layer
    assert (covered == 6).all()
