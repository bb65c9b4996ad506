"""Held-out prompts: other scenes with known regions, or what a calibration set kept back; never what calibrated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_toys import SPEC, DiscReference, click, features, toy_set

from samx.demo import demo_checkpoint
from samx.errors import InputError
from samx.quantization.calibration import CalibrationSet
from samx.quantization.rollout import HELD_OUT_SAMPLES, HeldOut, held_out
from samx.quantization.sources import CALIBRATION_SCENES, HELD_OUT_SCENES

EXPORTED = replace(SPEC, masks="multimask", mask_input=False)
MINE = Path("tuned.pth")


def kept(calibration: CalibrationSet, **options: Any) -> HeldOut:
    return held_out(calibration, DiscReference(), MINE, EXPORTED, **options)


def on_scenes(seed: int = 0, reference: DiscReference | None = None, **options: Any) -> HeldOut:
    calibration = toy_set(scenes=tuple(CALIBRATION_SCENES[:4]), held_out=(), seed=seed)
    return held_out(calibration, reference or DiscReference(), demo_checkpoint("sam1"), EXPORTED, **options)


@pytest.fixture(scope="module")
def scenes() -> HeldOut:
    return on_scenes()


# what a set kept back


def test_a_set_of_ones_own_is_judged_on_what_it_kept_back() -> None:
    calibration = toy_set(held_out=(click(30, 4), click(33, 4), click(34, 4)))  # on images 2, 1 and 2
    found = kept(calibration)
    assert [case.image for case in found.cases] == [1, 0, 1]
    assert [image["image_embeddings"].tobytes() for image in found.images] == [
        calibration.images[i]["image_embeddings"].tobytes() for i in (1, 2)
    ]
    asked = [case.prompts["point_coords"].tolist() for case in found.cases]
    assert asked == [sample.prompts["point_coords"].tolist() for sample in calibration.held_out]
    assert found.truth == (None, None, None)
    assert found.source == "held out of toys"


def test_cases_are_what_the_export_takes() -> None:
    (case,) = kept(toy_set(held_out=(click(30, 4),))).cases
    assert set(case.prompts) == {"point_coords", "point_labels"}  # the sample brings a mask
    masked = held_out(toy_set(held_out=(click(30, 4),)), DiscReference(), MINE, replace(EXPORTED, mask_input=True))
    assert masked.cases[0].prompts["has_mask_input"].tolist() == [1]


@pytest.mark.parametrize(("samples", "most_points"), [((), None), ((click(30, 4),), 1)])
def test_nothing_to_judge_on_is_refused(samples: Any, most_points: int | None) -> None:
    with pytest.raises(InputError, match=r"holds no prompt out to judge the result on. Calibrate again") as caught:
        kept(toy_set(held_out=samples), most_points=most_points)
    assert caught.value.exit_code == 6


# demo scenes


def test_a_demo_set_is_judged_on_other_scenes_whose_regions_are_known(scenes: HeldOut) -> None:
    assert len(scenes.images) == len(HELD_OUT_SCENES)
    assert len(scenes.cases) == len(scenes.truth) == HELD_OUT_SAMPLES
    assert {case.image for case in scenes.cases} == set(range(len(HELD_OUT_SCENES)))
    assert scenes.source == f"demo scenes {HELD_OUT_SCENES[0]} to {HELD_OUT_SCENES[-1]}, demo encoder"
    regions = [truth for truth in scenes.truth if truth is not None]
    assert len(regions) == HELD_OUT_SAMPLES
    assert {truth.shape for truth in regions} == {(1, SPEC.mask_size, SPEC.mask_size)}
    assert all(truth.any() for truth in regions)


def test_each_truth_is_that_of_its_prompt(scenes: HeldOut) -> None:
    """A first click on an object lies in its region; with regions in another order most would not."""
    pixel = SPEC.image_size // SPEC.mask_size
    inside = []
    for case, truth in zip(scenes.cases, scenes.truth, strict=True):
        assert truth is not None
        if case.name.startswith("click "):
            x, y = (case.prompts["point_coords"][0, 0] // pixel).astype(int)
            inside.append(bool(truth[0, y, x]))
    assert len(inside) >= HELD_OUT_SAMPLES // 5
    assert all(inside)


def test_the_same_seed_asks_the_same(scenes: HeldOut) -> None:
    def asked(found: HeldOut) -> list[Any]:
        return [(case.name, case.image, case.prompts["point_coords"].tolist()) for case in found.cases]

    assert asked(on_scenes()) == asked(scenes)
    assert asked(on_scenes(seed=1)) != asked(scenes)


def test_prompts_of_more_points_than_the_export_takes_are_left_out(scenes: HeldOut) -> None:
    few = on_scenes(most_points=2)
    assert 0 < len(few.cases) == len(few.truth) < len(scenes.cases)
    assert {case.prompts["point_labels"].shape[1] for case in few.cases} == {2}


def test_each_scene_is_told() -> None:
    told: list[tuple[int, int]] = []
    on_scenes(progress=lambda text, done=0, total=0, /: told.append((done, total)))
    assert told == [(i, len(HELD_OUT_SCENES)) for i in range(len(HELD_OUT_SCENES))]


def test_scenes_that_calibrated_judge_nothing() -> None:
    calibration = toy_set(scenes=(CALIBRATION_SCENES[0], HELD_OUT_SCENES[3]))
    with pytest.raises(InputError, match="cannot be judged on demo scenes: found scenes"):
        held_out(calibration, DiscReference(), demo_checkpoint("sam1"), EXPORTED)


def test_scenes_belong_to_demo_models() -> None:
    with pytest.raises(InputError, match="expected a demo checkpoint"):
        kept(toy_set(scenes=tuple(CALIBRATION_SCENES[:4])))


def test_a_reference_that_answers_with_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="answers most prompts with an empty or a full mask"):
        on_scenes(reference=DiscReference(change=lambda logits: logits - 1000))


# what an artifact takes along


def test_an_artifact_takes_some_images_and_every_prompt_on_them(scenes: HeldOut) -> None:
    images, cases = scenes.stored(3)
    single = [case for case in cases if not case.name.startswith("together")]
    assert len(images) == 3
    assert single == [case for case in scenes.cases if case.image < 3]
    assert {case.image for case in cases} == {0, 1, 2}


def test_some_prompts_are_asked_again_in_one_call(scenes: HeldOut) -> None:
    """One prompt a call shows nothing about several."""
    _, cases = scenes.stored(2)
    for image in (0, 1):
        (together,) = [case for case in cases if case.name == f"together on image {image}"]
        points = together.prompts["point_labels"].shape[1]
        alone = [
            case for case in scenes.cases if (case.image, case.prompts["point_labels"].shape[1]) == (image, points)
        ]
        assert len(alone) > 1
        for name, value in together.prompts.items():
            assert (value == np.concatenate([case.prompts[name] for case in alone])).all()


def test_fewer_images_than_asked_for_are_all_taken() -> None:
    found = HeldOut((features(SPEC, 0),), kept(toy_set(held_out=(click(30, 4),))).cases, (None,), "one")
    images, cases = found.stored(4)
    assert (len(images), [case.name for case in cases]) == (1, [found.cases[0].name, "together on image 0"])
