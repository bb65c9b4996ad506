"""Overlay: masks tinted, the rest dimmed, prompts marked where they are."""

from __future__ import annotations

import numpy as np
import pytest

from samx.processing.overlay import BACKGROUND, FOREGROUND, mask_colour, overlay
from samx.processing.prompts import Prompt

IMAGE = np.full((120, 160, 3), 128, np.uint8)


def test_a_mask_is_tinted_in_its_colour_and_the_rest_dimmed() -> None:
    mask = np.zeros((120, 160), bool)
    mask[30:90, 40:100] = True
    drawn = np.asarray(overlay(IMAGE, [mask]))
    np.testing.assert_allclose(drawn[60, 70], (128 + np.array(mask_colour(0))) / 2, atol=1)
    assert (drawn[5, 5] < 128).all()
    assert drawn[30, 70].sum() > drawn[60, 70].sum()  # the outline is lighter than the inside
    assert (IMAGE == 128).all()


def test_nothing_to_draw_leaves_the_picture_as_it_is() -> None:
    np.testing.assert_array_equal(np.asarray(overlay(IMAGE, [])), IMAGE)


def test_an_empty_mask_is_drawn_as_nothing() -> None:
    drawn = np.asarray(overlay(IMAGE, [np.zeros((120, 160), bool)]))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(("label", "colour"), [(1, FOREGROUND), (0, BACKGROUND)])
@pytest.mark.parametrize("point", [(80, 60), (0, 0), (160, 120), (5, 119)])
def test_a_point_is_marked_where_it_is(label: int, colour: tuple[int, int, int], point: tuple[int, int]) -> None:
    drawn = np.asarray(overlay(IMAGE, [], [Prompt([point], [label])])).astype(int)
    marked = np.argwhere(np.abs(drawn - colour).sum(axis=-1) < 12)[:, ::-1]
    assert len(marked)
    assert np.abs(marked - point).max() <= 8


def test_a_box_is_outlined() -> None:
    drawn = np.asarray(overlay(IMAGE, [], [Prompt(box=(20, 30, 100, 90))]))
    for x, y in ((20, 60), (100, 60), (60, 30), (60, 90)):
        assert tuple(drawn[y, x]) == FOREGROUND
    assert tuple(drawn[60, 60]) == (128, 128, 128)


def test_many_masks_have_colours_of_their_own() -> None:
    assert len({mask_colour(index) for index in range(60)}) == 60
