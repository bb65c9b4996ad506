"""Postprocessing: the same masks as upstream's torch code, and what is chosen among them."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from samx.errors import ParityError
from samx.models.selection import stability_scores as reference_stability
from samx.models.session import FloatArray, Outputs
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.processing.frames import Frame
from samx.processing.postprocess import (
    best_indices,
    bilinear_taps,
    mask_box,
    picture_logits,
    picture_mask,
    predicted_masks,
    resized_part,
    segment,
    stability_scores,
)

SAM1, SAM2 = sam1_spec(), sam2_spec()
SIZES = [(1024, 1024), (640, 480), (480, 640), (1023, 767), (300, 1999), (256, 256), (97, 31), (1, 1), (2000, 1500)]
# Two float32 roundings of logits up to 50 (4e-6 each); a different rounding of positions alone would give 3e-4.
ROUNDING = 2e-5
LIMIT_MS = 50  # asked of a 1024 x 1024 mask


def noise(size: int = 256, seed: int = 0) -> FloatArray:
    """Make logits without any smoothness, the hardest case for interpolation."""
    return (10 * np.random.default_rng(seed).standard_normal((size, size))).astype(np.float32)


def upstream(low_res: FloatArray, spec: DecoderSpec, frame: Frame) -> FloatArray:
    """Resize as Meta's postprocess_masks does."""
    masks = torch.from_numpy(low_res)[None, None]
    if spec.family == "sam1":
        masks = interpolate(masks, (spec.image_size,) * 2, mode="bilinear", align_corners=False)
        masks = masks[..., : frame.valid_height_px, : frame.valid_width_px]
    size = (frame.height_px, frame.width_px)
    result: FloatArray = interpolate(masks, size, mode="bilinear", align_corners=False)[0, 0].numpy()
    return result


@pytest.mark.parametrize("spec", [SAM1, SAM2, sam1_spec(image_size=256), sam2_spec(image_size=256)])
@pytest.mark.parametrize("size", SIZES)
def test_resizing_equals_torch(spec: DecoderSpec, size: tuple[int, int]) -> None:
    frame, low_res = Frame.of(spec, *size), noise(spec.mask_size)
    expected = upstream(low_res, spec, frame)
    np.testing.assert_allclose(picture_logits(low_res, frame), expected, rtol=0, atol=ROUNDING)
    decided = np.abs(expected) > ROUNDING
    np.testing.assert_array_equal(picture_mask(low_res, frame)[decided], (expected > 0)[decided])


@pytest.mark.parametrize("size", [(640, 480), (300, 1999)])
def test_the_comparison_with_torch_notices_a_missing_crop_or_a_single_resizing(size: tuple[int, int]) -> None:
    frame, low_res = Frame.of(SAM1, *size), noise()
    expected = upstream(low_res, SAM1, frame)
    uncropped = replace(frame, valid_width_px=1024, valid_height_px=1024)
    single = replace(frame, keeps_aspect=False)
    for wrong in (uncropped, single):
        assert np.abs(picture_logits(low_res, wrong) - expected).max() > 1


@pytest.mark.parametrize(("length_in", "length_out"), [(256, 1024), (1024, 640), (5, 3), (1, 7), (7, 1), (256, 256)])
def test_the_weights_of_every_pixel_sum_to_one(length_in: int, length_out: int) -> None:
    taps = bilinear_taps(length_in, length_out)
    np.testing.assert_allclose(taps.weight.sum(axis=0), 1, atol=1e-6)
    assert taps.index.min() >= 0
    assert taps.index.max() < length_in


def test_a_large_mask_is_resized_quickly() -> None:
    frame, low_res = Frame.of(SAM1, 1024, 1024), noise()
    samples_ms = []
    for _ in range(20):
        start = time.perf_counter()
        picture_logits(low_res, frame)
        samples_ms.append((time.perf_counter() - start) * 1e3)
    assert min(samples_ms) < LIMIT_MS  # the fastest: other work on the machine only adds time


@pytest.mark.parametrize("spec", [SAM1, SAM2])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1500, 333)])
def test_a_point_and_the_mask_around_it_stay_together(spec: DecoderSpec, size: tuple[int, int]) -> None:
    """Draw a disc around a point in the low-resolution frame: at picture size its centre is the point."""
    frame = Frame.of(spec, *size)
    point = np.array([0.6 * size[0], 0.4 * size[1]])
    cell = spec.image_size / spec.mask_size
    x, y = frame.to_frame(point) / cell
    rows, columns = np.mgrid[: spec.mask_size, : spec.mask_size] + 0.5
    disc = (8 - np.hypot(columns - x, rows - y)).astype(np.float32)
    found = np.argwhere(picture_mask(disc, frame)).mean(axis=0)[::-1] + 0.5
    np.testing.assert_allclose(found, point, atol=0.5)


def test_stability_equals_the_reference() -> None:
    logits = np.stack([noise(32, 1), noise(32, 2) + 5, np.full((32, 32), -9, np.float32)])
    expected = reference_stability(torch.from_numpy(logits), 0.5, 1.0)
    np.testing.assert_allclose(stability_scores(logits, 0.5, 1.0), expected.numpy(), atol=1e-6)
    assert stability_scores(logits, 0.5, 1.0)[2] == 1


def test_stability_counts_the_pixels_on_both_sides() -> None:
    logits = np.array([[-3, -0.5, 0.5, 3]], np.float32)
    assert stability_scores(logits, 0.0, 1.0) == pytest.approx(1 / 3)


def test_a_mask_box_ends_just_beyond_the_mask() -> None:
    mask = np.zeros((6, 8), bool)
    assert mask_box(mask) is None
    mask[2:4, 3:7] = True
    assert mask_box(mask) == (3, 2, 7, 4)


def scene(size: int = 64) -> Outputs:
    """Decode by hand: a disc and a square, each in three versions."""
    rows, columns = np.mgrid[:size, :size]
    disc = 40 * (12.5 - np.hypot(columns - 20, rows - 20))
    square = 40 * (10.5 - np.maximum(abs(columns - 48), abs(rows - 48)))
    empty, blurry = np.full((size, size), -9.0), 0.05 * (12.5 - np.hypot(columns - 20, rows - 48))
    masks = np.array([[disc, disc + 1, empty], [square, blurry, disc - 1]], np.float32)
    return {"low_res_masks": masks, "iou_predictions": np.array([[0.9, 0.97, 0.99], [0.95, 0.98, 0.87]], np.float32)}


SMALL, ALL = sam1_spec(image_size=256), sam1_spec(image_size=256, masks="all")
FRAME = Frame.of(SMALL, 512, 512)


def test_the_best_mask_of_each_prompt_is_the_surest() -> None:
    assert best_indices(scene(), SMALL).tolist() == [2, 1]
    first, second = segment(scene(), FRAME, SMALL)
    assert (first.prompt, first.index, first.area_px, first.box) == (0, 2, 0, None)
    assert (second.prompt, second.index) == (1, 1)
    assert second.area_px == second.mask.sum() > 0
    assert second.mask.shape == (512, 512)
    assert second.stability < 0.95


def with_single(outputs: Outputs) -> Outputs:
    """Put a single-mask token before the three: surer than they are, and sharp for the first prompt alone."""
    sharp, blurry = outputs["low_res_masks"][0, 0], outputs["low_res_masks"][1, 1]
    single = np.stack([sharp, 0.1 * blurry])[:, None]
    return {
        "low_res_masks": np.concatenate([single, outputs["low_res_masks"]], 1),
        "iou_predictions": np.concatenate([np.full((2, 1), 0.999, np.float32), outputs["iou_predictions"]], 1),
    }


def test_of_all_masks_the_single_one_is_never_chosen_among_the_others() -> None:
    outputs = with_single(scene())
    assert best_indices(outputs, ALL).tolist() == [3, 2]
    assert [found.index for found in segment(outputs, FRAME, ALL)] == [3, 2]
    logits, scores = predicted_masks(outputs, ALL, multimask=True)
    np.testing.assert_array_equal(logits, scene()["low_res_masks"])
    np.testing.assert_array_equal(scores, scene()["iou_predictions"])


def test_of_all_masks_the_single_one_is_that_of_the_family() -> None:
    outputs = with_single(scene())
    logits, scores = predicted_masks(outputs, ALL, multimask=False)
    np.testing.assert_array_equal(logits, outputs["low_res_masks"][:, :1])
    np.testing.assert_array_equal(scores, outputs["iou_predictions"][:, :1])
    logits, scores = predicted_masks(outputs, sam2_spec(image_size=256, masks="all"), multimask=False)
    np.testing.assert_array_equal(logits[:, 0], outputs["low_res_masks"][[0, 1], [0, 2]])  # the blurry one gives way
    np.testing.assert_array_equal(scores[:, 0], outputs["iou_predictions"][[0, 1], [0, 2]])


@pytest.mark.parametrize("name", ["iou_predictions", "low_res_masks"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(name: str, value: float) -> None:
    outputs = scene()
    outputs[name][0, 2].fill(value) if name == "low_res_masks" else outputs[name].fill(value)
    with pytest.raises(ParityError, match=f"'{name}' has values that are not finite"):
        list(segment(outputs, FRAME, SMALL))
    with pytest.raises(ParityError, match=f"'{name}' has values that are not finite"):
        predicted_masks(outputs, SMALL, multimask=True)


@pytest.mark.parametrize("size", [(640, 480), (300, 1999), (97, 31)])
@pytest.mark.parametrize("spec", [SMALL, sam2_spec(image_size=256)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_part_of_a_mask_is_resized_as_the_whole(spec: DecoderSpec, size: tuple[int, int], offset: float) -> None:
    frame = Frame.of(spec, *size)
    rows, columns = np.mgrid[:64, :64]
    for logits in (0.7 * (9 - np.hypot(columns - 20, rows - 9)), noise(64) - 30, np.full((64, 64), -9.0)):
        low_res = logits.astype(np.float32)
        whole, part = picture_logits(low_res, frame), resized_part(low_res, frame, 0.5, offset)
        (x, y), (height, width) = part.corner, part.part.shape
        placed = np.zeros_like(whole, np.bool_)
        placed[y : y + height, x : x + width] = part.part
        np.testing.assert_array_equal(placed, whole > 0.5)
        assert part.sure_px == np.count_nonzero(whole > 0.5 + offset)
        assert part.possible_px == np.count_nonzero(whole > 0.5 - offset)
        box = mask_box(placed)
        assert part.box == ((0, 0, 0, 0) if box is None else (box[0], box[1], box[2] - 1, box[3] - 1))


def test_a_cubic_filter_is_given_the_whole_mask() -> None:
    frame = replace(Frame.of(sam2_spec(image_size=256), 640, 480), cubic_masks=True)
    low_res = np.full((64, 64), -1.0, np.float32)
    low_res[30:33, 30:33] = -40  # around it the filter swings above -1
    part = resized_part(low_res, frame, 0.5, 0.0)
    assert part.part.any()
    assert np.count_nonzero(part.part) == np.count_nonzero(picture_logits(low_res, frame) > 0.5)
