"""Prompts of labels: where a user would click, and the same in every run."""

from __future__ import annotations

import numpy as np
import pytest
from labelled import square
from scipy import ndimage

from samx.demo.sampling import centre_pixel
from samx.errors import MissingExtraError, UsageError
from samx.evaluation import asking
from samx.evaluation.asking import Asking, centre


def test_a_box_ends_at_the_borders_of_the_outermost_pixels() -> None:
    prompt = Asking.parse("box", 0).make(square(), "x")
    assert prompt is not None
    assert prompt.box == (5.0, 6.0, 14.0, 15.0)


@pytest.mark.parametrize("seed", range(8))
def test_the_centre_is_as_far_from_the_outside_as_any_pixel(seed: int) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 80)), 6) > 0
    x, y = centre(mask)
    rows, columns = np.nonzero(~np.pad(mask, 1))
    outside = np.stack([columns - 1, rows - 1], axis=1)

    def room(px: int, py: int) -> float:
        return float(np.hypot(*(outside - (px, py)).T).min())

    assert mask[y, x]
    assert room(x, y) == max(room(int(px), int(py)) for py, px in np.argwhere(mask))


def test_a_square_s_centre_is_its_middle() -> None:
    assert centre(square()) == centre_pixel(square()) == (9, 10)
    corner = np.zeros((30, 40), np.bool_)
    corner[:9, :9] = True  # what is beyond the picture counts as outside
    assert centre(corner) == (4, 4)


def test_points_are_the_centre_and_others_of_the_mask() -> None:
    mask = square()
    prompt = Asking.parse("points:5", 3).make(mask, "x")
    assert prompt is not None
    assert prompt.points[0] == tuple(map(float, centre(mask)))
    assert len(set(prompt.points)) == 5
    assert all(mask[int(y), int(x)] for x, y in prompt.points)
    assert list(prompt.labels) == [1] * 5


def test_points_hang_on_seed_and_name_alone() -> None:
    drawn: list[list[tuple[float, float]]] = []
    for seed, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b")):
        prompt = Asking.parse("points:4", seed).make(square(), name)
        assert prompt is not None
        drawn.append([*prompt.points])
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[0] != drawn[3]


def test_too_few_pixels_make_no_prompt() -> None:
    mask = square(side=1)
    assert Asking.parse("points:2", 0).make(mask, "x") is None
    assert Asking.parse("points:1", 0).make(mask, "x") is not None


@pytest.mark.parametrize("text", ["", "boxes", "points", "points:0", "points:-1", "points:1.5", "points:1000", "Box"])
def test_another_prompt_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected box, centre or points:N"):
        Asking.parse(text, 0)


def test_a_missing_library_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str, extra: str, purpose: str) -> None:
        raise MissingExtraError(library, extra, purpose)

    monkeypatch.setattr(asking, "require", missing)
    with pytest.raises(MissingExtraError, match="scipy"):
        Asking.parse("centre", 0)
    assert Asking.parse("box", 0).text == "box"
