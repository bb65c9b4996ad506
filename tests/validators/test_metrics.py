"""Metrics on masks small enough to check by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from samx.models.session import Outputs
from samx.models.spec import sam1_spec, sam2_spec
from samx.validators.metrics import (
    BOUNDS,
    TIE_BAND,
    best_mask_changes,
    expect,
    mask_iou,
    measure,
    relative_error,
    sign_flips,
    suite_values,
)

SPEC = sam1_spec(image_size=16)  # one cell: masks of 4x4
FP32 = BOUNDS["fp32"]


def outputs(first_mask: Sequence[float], iou: float = 0.9) -> Outputs:
    """Give one prompt with three masks; the last two are positive everywhere."""
    masks = np.ones((1, 3, 4, 4), np.float32)
    masks[0, 0] = np.array(first_mask, np.float32).reshape(4, 4)
    return {"low_res_masks": masks, "iou_predictions": np.array([[iou, 0.5, 0.1]], np.float32)}


def test_equal_outputs() -> None:
    answer = outputs([1] * 8 + [-1] * 8)
    metrics = measure(SPEC, expect(SPEC, answer), answer, FP32)
    assert list(metrics.mask_iou) == [1, 1, 1]
    assert (metrics.flipped, metrics.pixels) == (0, 48)
    assert (metrics.values["logit_error"], metrics.values["best_mask_changes"]) == (0, 0)


def test_two_pixels_flipped() -> None:
    candidate = outputs([1] * 6 + [-1] * 10, iou=0.8)
    metrics = measure(SPEC, expect(SPEC, outputs([1] * 8 + [-1] * 8)), candidate, FP32)
    assert list(metrics.mask_iou) == [0.75, 1, 1]
    assert (metrics.flipped, metrics.values["logit_error"], metrics.values["logit_error_relative"]) == (2, 2, 2)
    assert metrics.values["iou_prediction_error"] == pytest.approx(0.1)
    assert suite_values([metrics])["flipped_share"] == pytest.approx(2 / 48)
    assert suite_values([metrics])["mask_iou_mean"] == pytest.approx(2.75 / 3)


def test_the_mask_threshold_is_not_always_zero() -> None:
    spec = sam1_spec(image_size=16, mask_threshold=1.5)
    metrics = measure(spec, expect(spec, outputs([2] * 16)), outputs([1] * 16), FP32)
    assert list(metrics.mask_iou) == [0, 1, 1]  # the other two are under the threshold on both sides: empty


def test_a_pixel_on_the_threshold_has_no_side() -> None:
    tie = 0.5 * TIE_BAND * 10
    reference = outputs([10] * 7 + [tie] + [-10] * 8)
    assert measure(SPEC, expect(SPEC, reference), outputs([10] * 7 + [-tie] + [-10] * 8), FP32).mask_iou[0] == 1
    beyond = outputs([10] * 7 + [4 * tie] + [-10] * 8)
    assert measure(SPEC, expect(SPEC, beyond), outputs([10] * 7 + [-tie] + [-10] * 8), FP32).mask_iou[0] < 1


def test_a_pixel_on_the_threshold_still_counts_as_a_logit() -> None:
    metrics = measure(SPEC, expect(SPEC, outputs([10] * 15 + [0])), outputs([10] * 15 + [-7]), FP32)
    assert (metrics.mask_iou[0], metrics.undecided, metrics.values["logit_error"]) == (1, 1, 7)


def test_mask_iou_of_empty_masks() -> None:
    empty, full = np.zeros((1, 4), np.bool_), np.ones((1, 4), np.bool_)
    assert mask_iou(empty, empty) == 1
    assert mask_iou(empty, full) == 0


def test_best_mask_counts_only_clear_choices() -> None:
    reference = np.array([[0.90, 0.80], [0.805, 0.80]], np.float32)
    assert best_mask_changes(reference, reference[:, ::-1], 0.01) == 1
    assert best_mask_changes(reference, reference[:, ::-1], 0.001) == 2
    assert best_mask_changes(reference[:, :1], reference[:, 1:], 0.001) == 0


def test_sign_flips_count_only_clear_scores() -> None:
    reference, candidate = np.array([[5.0], [0.01]], np.float32), np.array([[-5.0], [-0.01]], np.float32)
    assert sign_flips(reference, candidate, 0.1) == 1


SETTINGS = {"precision", "forgiven_pixels"}  # of the bounds, beside the bounds themselves


def test_every_metric_has_a_bound_and_every_bound_a_metric() -> None:
    spec = sam2_spec(image_size=16, object_pointer=True)
    answer = {**outputs([1] * 8 + [-1] * 8), "object_score_logits": np.ones((1, 1), np.float32)}
    answer["object_pointers"] = np.ones((1, 1, 256), np.float32)
    metrics = measure(spec, expect(spec, answer), answer, FP32)
    assert {*metrics.values, *suite_values([metrics]), *SETTINGS} == set(type(FP32).__dataclass_fields__)


@pytest.mark.parametrize("name", sorted(set(type(FP32).__dataclass_fields__) - SETTINGS))
def test_nan_is_on_no_side_of_any_bound(name: str) -> None:
    assert FP32.violations({name: float("nan")})
    good, bad = (1.0, -1.0) if name.startswith("mask_iou") else (0.0, 2.0)
    assert not FP32.violations({name: good})
    assert FP32.violations({name: bad})


def test_a_forgiven_pixel_is_one_pixel_of_a_mask() -> None:
    small, large = np.zeros((2, 1000), bool)
    small[:10], large[:] = True, True
    reference = np.stack([small, large])
    candidate = reference.copy()
    candidate[0, 0] = candidate[1, 0] = False
    assert mask_iou(candidate, reference).tolist() == [0.9, 0.999]
    assert mask_iou(candidate, reference, 1).tolist() == [1.0, 1.0]
    candidate[0, 1] = False
    assert mask_iou(candidate, reference, 1).tolist() == [0.9, 1.0]


def test_a_case_takes_its_masks_together() -> None:
    spec = sam1_spec(image_size=16)
    answer = outputs([1] * 8 + [-1] * 8)
    spoiled = {**answer, "low_res_masks": answer["low_res_masks"].copy()}
    spoiled["low_res_masks"].reshape(-1)[0] *= -1
    metrics = measure(spec, expect(spec, answer), spoiled, BOUNDS["fp16"])
    assert metrics.values["mask_iou_min"] > min(metrics.mask_iou)
    assert min(metrics.mask_iou) < metrics.values["mask_iou_case"] < 1


def test_a_prompt_counts_once_however_often_it_was_asked() -> None:
    reference, candidate = expect(SPEC, outputs([1] * 8 + [-1] * 8)), outputs([1] * 6 + [-1] * 10)
    wrong = [measure(SPEC, reference, candidate, FP32, [(3, 1)]) for _ in range(9)]
    right = measure(SPEC, reference, outputs([1] * 8 + [-1] * 8), FP32, [(3, 0)])
    values = suite_values([*wrong, right, replace(right, prompts=((3, 1),))])
    assert values["mask_iou_mean"] == pytest.approx((0.75 + 5) / 6)


def test_prompts_that_do_not_count_are_in_no_mean_and_alone_give_none() -> None:
    reference, candidate = expect(SPEC, outputs([1] * 8 + [-1] * 8)), outputs([1] * 6 + [-1] * 10)
    counted = measure(SPEC, reference, outputs([1] * 8 + [-1] * 8), FP32, [(3, 0)])
    others = measure(SPEC, reference, candidate, FP32, [None])
    assert suite_values([counted, others])["mask_iou_mean"] == 1
    assert suite_values([counted, others])["flipped_share"] > 0
    assert others.values["mask_iou_min"] < 0.9
    assert np.isnan([suite_values([others])[name] for name in ("mask_iou_mean", "mask_iou_p05")]).all()


def test_an_error_relative_to_nothing_is_beyond_any_bound() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, zeros + np.float32(1e-6)) > 1e6
    assert relative_error(zeros[:0], zeros[:0]) == 0
