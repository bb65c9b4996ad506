"""Call sites written for Meta's predictors run unchanged, and get what Meta's own packages give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import image_tensors, toy_checkpoint
from upstream_predictors import Noise, answer_with, iou, metas_demo_predictor, metas_predictor, our_predictor

import samx
from samx.demo.scenes import generate_scene
from samx.models.selection import stability_scores
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.predictor import Predictor
from samx.runtimes.torch import reference_session

SIDE = 256
SPECS: dict[str, DecoderSpec] = {
    make().family: make(image_size=SIDE, masks="all", mask_input=True) for make in (sam1_spec, sam2_spec)
}
SIZES = {"square": (300, 300), "wide": (180, 400), "tall": (400, 180), "tiny": (5, 9)}  # (H, W)
# Two float32 roundings of logits up to 50, as tests/processing/test_postprocess.py has it.
ROUNDING = 2e-5
TOLERANCE = 2e-3  # of logits of about 10, decoded by other kernels
EXTREME = 60.0  # a gain that brings logits beyond where SAM 2's predictor cuts them off

Call = Callable[..., Any]


def at(size: tuple[int, int], *shares: tuple[float, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Place points by their shares of the picture."""
    return np.array(shares) * (size[1], size[0])


def box(size: tuple[int, int], *shares: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(shares) * (size[1], size[0], size[1], size[0])


ONE: dict[str, Call] = {
    "point": lambda p, size, **k: p.predict(
        point_coords=at(size, (0.4, 0.5)), point_labels=np.array([1]), **k
    ),
    "points": lambda p, size, **k: p.predict(at(size, (0.4, 0.5), (0.9, 0.1), (0.2, 0.3)), np.array([1, 0, 1]), **k),
    "box": lambda p, size, **k: p.predict(box=box(size, 0.1, 0.2, 0.7, 0.9), **k),
    "box of one row": lambda p, size, **k: p.predict(box=box(size, 0.1, 0.2, 0.7, 0.9)[None, :], **k),
    "box and points": lambda p, size, **k: p.predict(
        point_coords=at(size, (0.4, 0.5), (0.6, 0.7)), point_labels=np.array([1, 0]),
        box=box(size, 0.1, 0.2, 0.7, 0.9), **k,
    ),
    "mask fed back": lambda p, size, **k: p.predict(
        point_coords=at(size, (0.4, 0.5)), point_labels=np.array([1]), mask_input=first_mask(p, size), **k
    ),
    "mask alone": lambda p, size, **k: p.predict(mask_input=first_mask(p, size), **k),
}  # fmt: skip
SEVERAL: dict[str, Call] = {
    "boxes": lambda p, size, **k: p.predict(
        box=np.stack([box(size, 0.1, 0.2, 0.7, 0.9), box(size, 0, 0, 0.5, 1)]), **k
    ),
    "points of two": lambda p, size, **k: p.predict(
        at(size, (0.4, 0.5), (0.9, 0.1)).reshape(2, 1, 2), np.array([[1], [0]]), **k
    ),
    "boxes and points of two": lambda p, size, **k: p.predict(
        point_coords=at(size, (0.4, 0.5), (0.9, 0.1)).reshape(2, 1, 2), point_labels=np.array([[1], [1]]),
        box=np.stack([box(size, 0.1, 0.2, 0.7, 0.9), box(size, 0, 0, 0.5, 1)]), **k,
    ),
    "boxes and a mask": lambda p, size, **k: p.predict(
        box=np.stack([box(size, 0.1, 0.2, 0.7, 0.9), box(size, 0, 0, 0.5, 1)]), mask_input=first_mask(p, size), **k
    ),
    "shares of the picture": lambda p, size, **k: p.predict(
        np.array([[0.4, 0.5]]), np.array([1]), np.array([0.1, 0.2, 0.7, 0.9]), normalize_coords=False, **k
    ),
}  # fmt: skip
CASES = [("sam1", name) for name in ONE] + [("sam2", name) for name in {**ONE, **SEVERAL}]
cases = pytest.mark.parametrize(("family", "case"), CASES, ids=[f"{family}-{name}" for family, name in CASES])
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))


def first_mask(predictor: Any, size: tuple[int, int]) -> Any:
    """Click once, and take the surest mask as call sites do."""
    _, scores, logits = predictor.predict(at(size, (0.5, 0.4)), np.array([1]), multimask_output=True)
    return logits[np.argmax(scores), :, :][None, :, :]


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@dataclass(frozen=True)
class Pair:
    """Meta's predictor and ours on the same image features."""

    meta: Any
    ours: Predictor

    def __iter__(self) -> Iterator[Any]:
        return iter((self.ours, self.meta))


@lru_cache
def same_weights(spec: DecoderSpec, pictures: int = 1) -> Pair:
    """Decode with the same weights on both sides, Meta's modules and our reference."""
    loaded, images = toy_checkpoint(spec), [image_tensors(spec, seed=seed) for seed in range(pictures)]
    return Pair(metas_predictor(loaded, images), our_predictor(reference_session(loaded, spec), images))


@lru_cache
def same_logits(spec: DecoderSpec, gain: float = 10.0) -> Pair:
    """Let noise take the place of decoding, the same on both sides."""
    images, session = [image_tensors(spec)], Noise(spec, gain)
    meta = metas_predictor(toy_checkpoint(spec), images)
    answer_with(meta, session)
    return Pair(meta, our_predictor(session, images))


def assert_same(found: Any, expected: Any) -> None:
    """Compare what two predictors return on the same logits: names, types and every decided pixel."""
    for ours, metas in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype) == (metas.shape, metas.dtype)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])


@cases
@sizes
@pytest.mark.parametrize("multimask", [True, False], ids=["multimask", "single"])
def test_the_same_logits_give_the_same_masks(family: str, case: str, size: tuple[int, int], multimask: bool) -> None:
    both, call = same_logits(SPECS[family]), {**ONE, **SEVERAL}[case]
    for predictor in both:
        predictor.set_image(picture(size))
    found = call(both.ours, size, multimask_output=multimask)
    expected = call(both.meta, size, multimask_output=multimask)
    logits = call(both.ours, size, multimask_output=multimask, return_logits=True)
    metas = call(both.meta, size, multimask_output=multimask, return_logits=True)
    assert_same(found, expected)
    assert_same(logits, metas)
    np.testing.assert_allclose(logits[0], metas[0], rtol=0, atol=ROUNDING)
    decided = np.abs(metas[0]) > ROUNDING
    assert decided.mean() > 0.9999
    np.testing.assert_array_equal(found[0][decided], expected[0][decided])


@cases
@pytest.mark.parametrize("multimask", [True, False], ids=["multimask", "single"])
def test_the_same_weights_give_the_same_masks(family: str, case: str, multimask: bool) -> None:
    both, call, size = same_weights(SPECS[family]), {**ONE, **SEVERAL}[case], SIZES["wide"]
    for predictor in both:
        predictor.set_image(picture(size))
    found = call(both.ours, size, multimask_output=multimask)
    expected = call(both.meta, size, multimask_output=multimask)
    for ours, metas in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype) == (metas.shape, metas.dtype)
    assert 0.01 < expected[0].mean() < 0.99
    assert iou(found[0], expected[0]) > 0.999
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", SPECS)
def test_logits_are_handed_back_as_far_as_the_family_does(family: str) -> None:
    both, size = same_logits(SPECS[family], EXTREME), SIZES["wide"]
    for predictor in both:
        predictor.set_image(picture(size))
    found, expected = (ONE["point"](predictor, size, return_logits=True) for predictor in both)
    assert_same(found, expected)
    assert (np.abs(found[2]).max() == 32) == (family == "sam2")
    assert np.abs(found[0]).max() > 100  # masks are made of what the decoder returned


def test_an_unstable_single_mask_gives_way_as_in_metas_predictor() -> None:
    spec = SPECS["sam2"]
    boxes = np.array([[0.1 * n, 1.0, 300.0 + n, 150.0] for n in range(8)])
    drawn = torch.from_numpy(Noise(spec).decode({"point_labels": np.zeros((8, 3), np.float32)})["low_res_masks"])
    scores = stability_scores(drawn[:, 0], 0.0, spec.stability_delta)
    low, high = scores.sort().values[3:5].tolist()
    assert low < high
    threshold = (low + high) / 2  # so that both branches are taken
    both, size = same_logits(replace(spec, stability_threshold=threshold)), SIZES["wide"]
    for predictor in both:
        predictor.set_image(picture(size))
    found, expected = (predictor.predict(box=boxes, multimask_output=False) for predictor in both)
    assert_same(found, expected)
    fell_back = (found[2][:, 0] != drawn[:, 0].clamp(-32, 32).numpy()).any((-1, -2))
    assert fell_back.tolist() == (scores < threshold).tolist()


@sizes
def test_many_boxes_through_predict_torch(size: tuple[int, int]) -> None:
    both = same_logits(SPECS["sam1"])
    results = []
    for predictor in both:
        image = picture(size)
        predictor.set_image(image)
        input_boxes = torch.tensor(np.stack([box(size, 0, 0, 1, 1), box(size, 0.2, 0.1, 0.8, 0.6)]))
        transformed = predictor.transform.apply_boxes_torch(input_boxes, image.shape[:2])
        masks, scores, logits = predictor.predict_torch(
            point_coords=None, point_labels=None, boxes=transformed, multimask_output=False
        )
        results.append((transformed, masks, scores, logits))
    for ours, metas in zip(*results, strict=True):
        assert isinstance(ours, torch.Tensor)
        assert ours.dtype == metas.dtype
        assert torch.equal(ours, metas)


def test_points_and_a_mask_through_predict_torch_with_the_same_weights() -> None:
    both, size = same_weights(SPECS["sam1"]), SIZES["tall"]
    results = []
    for predictor in both:
        predictor.set_image(picture(size))
        coords = predictor.transform.apply_coords_torch(
            torch.tensor(at(size, (0.4, 0.5), (1, 1)).reshape(2, 1, 2)), predictor.original_size
        )
        masks = torch.tensor(first_mask(predictor, size))[None].repeat(2, 1, 1, 1)
        labels = torch.ones(2, 1, dtype=torch.int)
        results.append(predictor.predict_torch(coords, labels, mask_input=masks, return_logits=True))
    for ours, metas in zip(*results, strict=True):
        torch.testing.assert_close(ours, metas, rtol=0, atol=TOLERANCE)


def test_coordinates_move_as_metas_transform_moves_them() -> None:
    both = same_logits(SPECS["sam1"])
    for size in SIZES.values():
        points, boxes = at(size, (0.3, 0.7), (1, 1)), box(size, 0.1, 0.2, 0.7, 0.9)[None]
        for name, given in (("apply_coords", points), ("apply_boxes", boxes)):
            ours, metas = (getattr(p.transform, name)(given, size) for p in (both.ours, both.meta))
            np.testing.assert_array_equal(ours, metas)
            assert ours.dtype == metas.dtype


@pytest.mark.parametrize("family", SPECS)
def test_the_state_that_call_sites_read(family: str) -> None:
    both, size = same_weights(SPECS[family]), SIZES["wide"]
    for predictor in both:
        predictor.set_image(picture(size))
    assert torch.equal(both.ours.get_image_embedding(), both.meta.get_image_embedding())
    assert torch.zeros(1, device=both.ours.device).device == both.meta.device
    if family == "sam2":
        assert both.ours.mask_threshold == both.meta.mask_threshold
        both.ours.reset_predictor()
        both.meta.reset_predictor()
        assert both.ours.is_image_set == both.meta._is_image_set
        return
    state = ("is_image_set", "original_size", "input_size")
    assert [getattr(both.ours, name) for name in state] == [getattr(both.meta, name) for name in state]
    both.ours.reset_image()
    both.meta.reset_image()
    assert both.ours.is_image_set == both.meta.is_image_set


@pytest.mark.parametrize("family", SPECS)
def test_an_artifact_segments_as_metas_predictor_does(family: str, request: pytest.FixtureRequest) -> None:
    scene = np.asarray(generate_scene(900_003, (320, 240)).image)
    artifact: Path = request.getfixturevalue("sam2_artifact" if family == "sam2" else "all_masks_artifact")
    with samx.open(artifact) as ours:
        meta = metas_demo_predictor(family, ours.spec.image_size)
        size = scene.shape[:2]
        for predictor in (ours, meta):
            predictor.set_image(scene)
        for case in ("point", "box", "box and points", "mask fed back"):
            found, expected = (ONE[case](predictor, size) for predictor in (ours, meta))
            assert 0.001 < expected[0].mean() < 0.999
            logits = np.abs(ONE[case](meta, size, return_logits=True)[0])
            decided = logits > 1e-4 * logits.max()  # two processors' sums leave the others on either side
            assert decided.mean() > 0.998
            assert iou(found[0] * decided, expected[0] * decided) > 0.9999, case
            np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def test_a_batch_of_pictures() -> None:
    both, shapes = same_weights(SPECS["sam2"], 3), list(SIZES.values())[:3]
    results = []
    for predictor in both:
        predictor.set_image_batch([picture(size, seed) for seed, size in enumerate(shapes)])
        results.append(
            predictor.predict_batch(
                [at(size, (0.4, 0.5)) for size in shapes], [np.array([1])] * 3,
                box_batch=[box(size, 0.1, 0.2, 0.7, 0.9) for size in shapes], multimask_output=False,
            )
        )  # fmt: skip
        results[-1] = (*results[-1], [predictor.predict(box=box(shapes[-1], 0, 0, 0.5, 0.5))[2]])
    for ours, metas in zip(*results, strict=True):
        assert isinstance(ours, list)
        assert len(ours) == len(metas)
        for one, other in zip(ours, metas, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE if one.shape[-1] == SIDE // 4 else 1)
            assert iou(one > 0, other > 0) > 0.999
