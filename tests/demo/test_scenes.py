"""The demo scenes: the same for a seed at every size, and truly nested."""

from __future__ import annotations

import numpy as np
import pytest

from samx.demo.scenes import LEVELS, generate_scene

SEEDS = (0, 1, 2, 7, 11)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_always_gives_the_same_scene(seed: int) -> None:
    first, second = generate_scene(seed, 128), generate_scene(seed, 128)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.ids, second.ids)


def test_seeds_give_different_scenes() -> None:
    pictures = [generate_scene(seed, 64).image.astype(int) for seed in SEEDS]
    differences = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(differences) > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_regions_are_nested(seed: int) -> None:
    scene = generate_scene(seed, 256)
    for inner, outer in ((1, 0), (2, 1)):
        for region in np.unique(scene.ids[inner]):
            if region != 0:
                holders = np.unique(scene.ids[outer][scene.ids[inner] == region])
                assert len(holders) == 1
                assert holders[0] != 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_scene_is_the_same_at_other_sizes(seed: int) -> None:
    small, large = generate_scene(seed, 128), generate_scene(seed, 512)
    assert (small.ids == large.ids[:, 2::4, 2::4]).mean() > 0.98
    shrunk = large.image.reshape(128, 4, 128, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small.image).mean() < 8


def test_a_picture_may_be_wide_or_tall() -> None:
    wide, tall = generate_scene(3, (320, 200)), generate_scene(3, (200, 320))
    assert wide.image.shape == (200, 320, 3)
    assert wide.ids.shape == (3, 200, 320)
    assert tall.image.shape == (320, 200, 3)
    assert len(wide.masks("whole")) >= 1


def test_every_level_occurs() -> None:
    counts = {level: sum(len(generate_scene(seed, 64).masks(level)) for seed in range(10)) for level in LEVELS}
    assert all(count >= 10 for count in counts.values()), counts


def test_masks_agree_with_ids() -> None:
    scene = generate_scene(5, 128)
    for index, level in enumerate(LEVELS):
        masks = scene.masks(level)
        assert masks.dtype == bool
        assert np.array_equal(masks.any(axis=0), scene.ids[index] > 0)
        assert (masks.sum(axis=0) <= 1).all()
