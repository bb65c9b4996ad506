"""Prompts are what users give, answered by the reference; a set is made of them, and what judges it is kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_toys import CHECKPOINT, SPEC, DiscReference, image, scene, source, toy_set

from samx.demo import demo_checkpoint
from samx.demo.sampling import padded_prompt
from samx.errors import InputError, ParityError, UsageError
from samx.models.checkpoint import build_reference, load_checkpoint
from samx.models.fast.decoder import FastDecoder
from samx.models.spec import LABELS, DecoderSpec, sam2_spec
from samx.quantization.calibration import MIN_SAMPLES, SHARES, CalibrationSet, calibration_spec, prompt_key
from samx.quantization.rollout import HELD_OUT_SAMPLES, MOST_SAMPLES, build_set, calibration_reference, deal, held_out
from samx.quantization.sources import HELD_OUT_SCENES
from samx.quantization.user import MOST_ROUNDS, Question, User
from samx.runtimes.torch import TorchRuntime, reference_session
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.suite import ParitySuite

SAM2 = calibration_spec(sam2_spec(image_size=128))
FINE = replace(SPEC, patch_px=4)  # LiteMedSAM's: a pixel of the mask is one of the frame
SPECS = pytest.mark.parametrize("spec", [SPEC, SAM2, FINE], ids=["sam1", "sam2", "4 px patches"])
MANY = 40  # draws of each kind
LABEL = LABELS["foreground"], LABELS["background"]


def user(spec: DecoderSpec = SPEC, reference: DiscReference | None = None, seed: int = 0) -> User:
    return User(reference or DiscReference(spec), scene(0, spec), np.random.default_rng(seed))


def pixels(question: Question, spec: DecoderSpec = SPEC) -> list[tuple[int, int]]:
    return [(int((x + 0.5) / spec.mask_px), int((y + 0.5) / spec.mask_px)) for x, y in question.points]


def built(count: int = 8, make: Callable[..., Any] = image, spec: DecoderSpec = SPEC, **more: Any) -> CalibrationSet:
    scenes = tuple(range(count)) if make is scene else ()
    return build_set(DiscReference(spec), CHECKPOINT, source(count, make, spec, scenes=scenes), **more)


# --- What a user gives --------------------------------------------------------------------------------------------


@SPECS
def test_every_kind_says_what_its_name_says(spec: DecoderSpec) -> None:
    person = user(spec)
    for _ in range(MANY):
        region = person.region()
        asked = {kind: person.ask(kind, region) for kind in SHARES}
        counts = {kind: Counter(question.labels) for kind, question in asked.items()}
        foreground, background = LABEL
        assert counts["click"] == {foreground: 1}
        assert 2 <= counts["points"][foreground] <= 5 == 5 - counts["points"][background]
        assert counts["negative_points"][foreground] == 1 <= counts["negative_points"][background] <= 3
        assert counts["box"] == {}
        assert 1 <= counts["box_and_points"][foreground] <= 3
        assert {kind for kind, question in asked.items() if question.box} - {"refinement"} == {"box", "box_and_points"}
        assert [kind for kind, question in asked.items() if question.mask is not None] == ["refinement"]


@SPECS
def test_clicks_fall_on_the_region_and_negative_ones_beside_it(spec: DecoderSpec) -> None:
    person = user(spec)
    for _ in range(MANY):
        region = person.region()
        for kind in ("click", "points", "negative_points", "box_and_points"):
            question = person.ask(kind, region)
            for (x, y), label in zip(pixels(question, spec), question.labels, strict=True):
                assert (region.own if label == LABEL[0] else person.valid & ~region.mask)[y, x]


@SPECS
def test_a_box_is_near_the_region_and_in_the_picture(spec: DecoderSpec) -> None:
    person = user(spec)
    for _ in range(MANY):
        region = person.region()
        (x0, y0), (x1, y1) = person.box(region).box
        assert 0 <= x0 <= x1 - 1 <= 127
        assert 0 <= y0 <= y1 - 1 <= 95
        assert np.abs(np.array([x0, y0, x1, y1]) - np.multiply(region.box, spec.mask_px)).max() <= 4


@SPECS
def test_every_point_lies_in_the_part_that_the_picture_fills(spec: DecoderSpec) -> None:
    for make in (image, scene):
        person = User(DiscReference(spec), make(0, spec), np.random.default_rng(0))
        for kind in [*SHARES] * 5:
            coords = person.feed(person.ask(kind, person.region()))["point_coords"][0]
            assert (coords >= 0).all()
            assert (coords <= person.extent).all()


@SPECS
def test_tokens_are_in_the_order_of_the_familys_predictor(spec: DecoderSpec) -> None:
    person = user(spec)
    for kind in SHARES:
        question = person.ask(kind, person.region())
        points, box = list(question.points), list(question.box) or None
        coords, labels = padded_prompt(spec.family, points, list(question.labels), box)
        feed = person.feed(question)
        np.testing.assert_array_equal(feed["point_coords"], np.array([coords], np.float32))
        assert feed["point_labels"].tolist() == [labels]
        assert ("mask_input" in feed) == ("has_mask_input" in feed) == (kind == "refinement")


# --- Corrections ----------------------------------------------------------------------------------------------------


def test_a_correction_falls_where_the_answer_is_wrong_and_brings_the_answer_back() -> None:
    person = user()
    rounds: set[int] = set()
    for _ in range(MANY):
        region = person.region()
        question = person.refinement(region)
        before = replace(question, points=question.points[:-1], labels=question.labels[:-1], mask=None)
        logits, mask = person.answer(before)  # discs do not depend on the mask
        assert question.mask is not None
        np.testing.assert_array_equal(question.mask, logits)
        x, y = pixels(question)[-1]
        assert question.labels[-1] == LABEL[not region.mask[y, x]]
        assert mask[y, x] != region.mask[y, x]
        rounds.add(len(question.points) - (0 if question.box else 1))
    assert rounds == set(range(1, MOST_ROUNDS + 1))


def test_the_mask_that_a_user_takes() -> None:
    reference = DiscReference()
    person = user(reference=reference)
    region = person.region()
    outputs = person._decode(person.feed(person.click(region)))
    _, one = person.answer(Question(((40.0, 40.0),), (1,)))
    _, more = person.answer(Question(((40.0, 40.0), (44.0, 40.0)), (1, 1)))
    assert one.sum() > more.sum()  # the largest disc has the highest predicted IoU, the first the smallest
    assert outputs["iou_predictions"].argmax() == 3


@SPECS
def test_a_previous_mask_is_cut_off_as_the_predictor_does(spec: DecoderSpec) -> None:
    person = user(spec, DiscReference(spec, lambda logits: 10 * logits))
    highest = float(person.answer(person.click(person.region()))[0].max())
    assert (highest == sam2_spec().rules.mask_limit) == (spec.family == "sam2")
    assert highest <= spec.rules.mask_limit


def test_regions_of_a_scene_are_its_own() -> None:
    person = user()
    assert person.knows_truth
    assert [int(region.level) for region in person.regions] == [0, 1]
    assert not person.valid[24:].any()
    assert person.valid[:24].all()


def test_regions_that_are_not_known_are_what_the_reference_finds() -> None:
    reference = DiscReference()
    person = User(reference, image(0), np.random.default_rng(0))
    assert not person.knows_truth
    coords = reference.asked[0]["point_coords"]
    found = [next(i for i, point in enumerate(coords) if region.mask[int(point[0, 1]) // 4, int(point[0, 0]) // 4])
             for region in person.regions]  # fmt: skip
    assert len(person.regions) == len(coords) // 2
    assert found


def test_the_reference_sees_the_image_as_the_file_keeps_it() -> None:
    reference = DiscReference()
    made = image(0)
    User(reference, made, np.random.default_rng(0))
    expected = made.features["image_embeddings"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(reference.images[0]["image_embeddings"], expected)


@pytest.mark.parametrize("extent", [(128, 16), (16, 128), (128, 128), (16, 16)])
def test_where_the_reference_finds_nothing_a_rectangle_is_meant(extent: tuple[int, int]) -> None:
    made = replace(image(0), extent=extent)
    person = User(DiscReference(change=lambda logits: logits - 1000), made, np.random.default_rng(0))
    (region,) = person.regions
    assert region.mask.any()
    assert not (region.mask & ~person.valid).any()
    assert all(person.ask(kind, region) for kind in SHARES)


# --- Sets -----------------------------------------------------------------------------------------------------------


@SPECS
def test_a_set_has_every_kind_in_its_share(spec: DecoderSpec) -> None:
    found = built(8, scene, spec, samples=96)
    counts = Counter(sample.name for sample in found.samples)
    assert counts == {"click": 24, "box": 19, "points": 14, "negative_points": 10, "box_and_points": 10,
                      "refinement": 19}  # fmt: skip
    assert Counter(sample.image for sample in found.samples) == dict.fromkeys(range(8), 12)
    assert [("mask_input" in sample.prompts) for sample in found.samples] == [
        sample.name == "refinement" for sample in found.samples
    ]
    assert (found.held_out, found.scenes, found.source) == ((), tuple(range(8)), "8 toys; judged on other scenes")


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    first, again, other = (built(samples=32, seed=seed).to_bytes() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_the_trained_reference_gives_the_same_bytes_twice() -> None:
    loaded = load_checkpoint(demo_checkpoint("sam1"), image_size=128)
    packed = [
        build_set(calibration_reference(loaded), loaded.sha256, source(4), samples=24).to_bytes() for _ in range(2)
    ]
    assert packed[0] == packed[1]


def test_some_of_the_users_images_are_held_out() -> None:
    found = built(8, samples=48)
    calibrating, judging = ({sample.image for sample in part} for part in (found.samples, found.held_out))
    assert (len(calibrating), len(judging)) == (6, 2)
    assert calibrating.isdisjoint(judging)
    assert len(found.held_out) == HELD_OUT_SAMPLES
    assert found.source == "8 toys; 2 images held out"


def test_of_few_images_other_prompts_are_held_out() -> None:
    found = built(5, samples=48)
    assert {sample.image for sample in found.samples} == {sample.image for sample in found.held_out} == set(range(5))
    assert {prompt_key(s) for s in found.samples}.isdisjoint(prompt_key(s) for s in found.held_out)
    assert len(found.held_out) > HELD_OUT_SAMPLES / 2
    assert "too few images to hold one out, so other prompts on the same images are held out" in found.source


def test_dealing_leaves_nobody_out() -> None:
    hands = deal(24, [1, 3], 5, seed=0)
    assert [len(hand) for hand in hands] == [0, 12, 0, 12, 0]


def test_progress_counts_images() -> None:
    said: list[tuple[str, int, int]] = []
    built(6, samples=24, progress=lambda text, done=0, total=0, /: said.append((text, done, total)))
    assert said == [("Rolling out calibration prompts, image by image", i, 6) for i in range(6)]


@pytest.mark.parametrize(("count", "samples"), [(8, MIN_SAMPLES - 1), (40, 39), (8, MOST_SAMPLES + 1), (8, 0)])
def test_a_number_of_samples_that_cannot_be_is_refused(count: int, samples: int) -> None:
    with pytest.raises(UsageError, match=f"found {samples}, expected {max(count, MIN_SAMPLES)} to {MOST_SAMPLES}"):
        built(count, samples=samples)


FAULTS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "empty masks": (lambda logits: logits - 1000, InputError, "found 0 of 72 masks with an outline"),
    "full masks": (lambda logits: logits + 1000, InputError, "found 0 of 72 masks with an outline"),
    "NaN": (lambda logits: np.where(logits > 0, np.nan, logits), ParityError, "values that are not finite"),
    "wrong shape": (lambda logits: logits[:, :3], ParityError, "low_res_masks has shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reference_that_answers_nothing_is_refused(fault: str) -> None:
    change, error, words = FAULTS[fault]
    with pytest.raises(error, match=words):
        build_set(DiscReference(change=change), CHECKPOINT, source(8), samples=24)


def test_images_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(InputError, match="images 0 and 1 of the calibration set are the same"):
        build_set(DiscReference(), CHECKPOINT, source(8, lambda i, spec: image(0, spec)), samples=24)


# --- What judges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_demo_scenes_are_judged_on_other_scenes_with_their_truth(family: str) -> None:
    checkpoint = demo_checkpoint(family)
    loaded = load_checkpoint(checkpoint, image_size=256)
    spec = replace(loaded.spec, masks="multimask", mask_input=False)
    reference = calibration_reference(loaded)
    found = held_out(toy_set(spec=loaded.spec, **_scene_set(loaded.spec)), reference, checkpoint, spec)
    assert len(found.images) == len(HELD_OUT_SCENES)
    assert len(found.cases) == len(found.truth) == HELD_OUT_SAMPLES
    assert {truth.shape for truth in found.truth if truth is not None} == {(1, 64, 64)}
    assert {case.name.split()[0] for case in found.cases} == set(SHARES)
    assert [case.image for case in found.cases] == sorted(case.image for case in found.cases)
    assert all(set(case.prompts) == {"point_coords", "point_labels"} for case in found.cases)
    assert found.source == "demo scenes 800000 to 800007, demo encoder"


def test_truth_is_what_the_prompts_ask_for() -> None:
    """The trained decoder answers a box with the region, and not with another prompt's."""
    checkpoint = demo_checkpoint("sam1")
    loaded = load_checkpoint(checkpoint, image_size=512)
    reference = calibration_reference(loaded)
    found = held_out(toy_set(spec=loaded.spec, **_scene_set(loaded.spec)), reference, checkpoint, reference.spec)
    right, wrong = [], []
    for i, (case, truth) in enumerate(zip(found.cases, found.truth, strict=True)):
        if case.name.startswith("box ") and truth is not None:
            reference.set_image(found.images[case.image])
            mask = reference.decode(case.prompts)["low_res_masks"][:, 0] > 0
            right.append((mask & truth).sum() / (mask | truth).sum())
            other = found.truth[i - 1]
            assert other is not None
            wrong.append((mask & other).sum() / (mask | other).sum())
    assert np.mean(right) > 0.5 > 0.3 > np.mean(wrong)


def _scene_set(spec: DecoderSpec) -> dict[str, Any]:
    """Make a set's contents for demo scenes at another size, without rolling them out."""
    made = tuple(image(i, spec).features for i in range(4))
    samples = tuple(
        replace(s, prompts={n: v for n, v in s.prompts.items() if "mask" not in n}) for s in toy_set().samples
    )
    return {"images": made, "samples": samples, "held_out": (), "scenes": (700_000, 700_001, 700_002, 700_003)}


def test_other_sets_are_judged_on_what_they_hold_out() -> None:
    found = built(8, samples=48)
    spec = replace(SPEC, masks="single")
    judged = held_out(found, DiscReference(), Path("vit_b.pth"), spec)
    apart = sorted({sample.image for sample in found.held_out})
    assert len(judged.images) == 2
    assert all(
        np.array_equal(judged.images[i]["image_embeddings"], found.images[image]["image_embeddings"])
        for i, image in enumerate(apart)
    )
    assert [case.image for case in judged.cases] == [apart.index(sample.image) for sample in found.held_out]
    assert set(judged.truth) == {None}
    assert judged.source == "held out of 8 toys; 2 images held out"
    assert len(held_out(found, DiscReference(), Path("vit_b.pth"), spec, most_points=2).cases) < len(judged.cases)


def test_a_set_that_holds_nothing_out_cannot_be_judged() -> None:
    with pytest.raises(InputError, match="holds no prompt out"):
        held_out(toy_set(held_out=()), DiscReference(), Path("vit_b.pth"), SPEC)


@pytest.mark.parametrize(
    ("checkpoint", "scenes"),
    [(Path("vit_b.pth"), (700_000,)), (demo_checkpoint("sam1"), (HELD_OUT_SCENES[3],))],
    ids=["no demo", "calibrated on what judges"],
)
def test_scenes_that_cannot_judge_are_refused(checkpoint: Path, scenes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be judged on demo scenes"):
        held_out(toy_set(scenes=scenes), DiscReference(), checkpoint, SPEC)


def test_what_is_held_out_goes_through_the_gate() -> None:
    loaded = load_checkpoint(demo_checkpoint("sam1"), image_size=128)
    spec = replace(loaded.spec, masks="multimask", mask_input=True)
    reference = calibration_reference(loaded)
    found = build_set(reference, loaded.sha256, source(6), samples=24)
    judging = held_out(found, reference, Path("vit_b.pth"), spec)
    suite = ParitySuite.build(reference_session(loaded, spec), judging.images, judging.cases, judging.source)
    report = run_gate(
        TorchRuntime(FastDecoder(build_reference(replace(loaded, spec=spec)))), suite, bounds_for("int8"), level="graph"
    )
    assert report.passed, report.failures
    assert len(report.cases) == len(judging.cases)
