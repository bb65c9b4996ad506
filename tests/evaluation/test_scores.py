"""IoU, Dice and boundary IoU, against other people's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from labelled import square
from numpy.typing import NDArray
from scipy import ndimage

from samx.evaluation import scores
from samx.evaluation.scores import boundary, boundary_px, score

Mask = NDArray[np.bool_]

# (seed, height, width) of blobs(): pixels of the boundary that OpenCV 5.0.0 makes of it by the formula of
# boundary_iou's mask_to_boundary: a border of zeros, eroded by 3 x 3 ones, round(0.02 * diagonal) times.
OPENCV: dict[tuple[int, int, int], int] = {
    (0, 240, 320): 30178, (1, 480, 640): 138899, (2, 300, 200): 20639, (3, 768, 1024): 402041, (4, 31, 47): 255,
}  # fmt: skip


def blobs(seed: int, height: int, width: int) -> Mask:
    """Draw a mask of blobs, some of them cut off by the border, with holes."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    return np.asarray(ndimage.gaussian_filter(noise, 9, mode="wrap") > 0)


def eroded_by_scipy(mask: Mask) -> Mask:
    """Take the boundary as its paper's authors do, with SciPy's erosion in the place of OpenCV's."""
    steps = max(1, round(0.02 * float(np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
    inner = ndimage.binary_erosion(mask, np.ones((3, 3), bool), iterations=steps, border_value=0)
    return mask & ~inner


@pytest.mark.parametrize("size", [(240, 320), (300, 200), (31, 47), (7, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_the_boundary_is_that_of_repeated_erosion(size: tuple[int, int], seed: int) -> None:
    mask = blobs(seed, *size)
    mask[: size[0] // 2, : size[1] // 2] = True
    np.testing.assert_array_equal(boundary(mask, boundary_px(*size)), eroded_by_scipy(mask))


@pytest.mark.parametrize(("case", "pixels"), OPENCV.items())
def test_the_boundary_is_opencv_s(case: tuple[int, int, int], pixels: int) -> None:
    mask = blobs(*case)
    assert int(boundary(mask, boundary_px(*case[1:])).sum()) == pixels


def test_values_of_opencv_are_there() -> None:
    assert len(OPENCV) >= 4


def test_a_shifted_square_has_the_scores_of_its_geometry() -> None:
    truth, mask = square((200, 200), (50, 50), 40), square((200, 200), (60, 50), 40)
    found = score(truth, mask)
    assert found.iou == pytest.approx(30 * 40 / (50 * 40))
    assert found.dice == pytest.approx(2 * 30 * 40 / (2 * 40 * 40))
    # 6 px wide rims (2 % of 283 px): a rim has 40 * 40 - 28 * 28 px; common are the rims' upper and lower bars.
    rim, common = 40 * 40 - 28 * 28, int((eroded_by_scipy(truth) & eroded_by_scipy(mask)).sum())
    assert found.boundary_iou == pytest.approx(common / (2 * rim - common))
    assert found.boundary_iou < found.iou


def test_equal_masks_score_one_and_an_empty_one_zero() -> None:
    truth = square()
    assert score(truth, truth) == scores.Scores(1.0, 1.0, 1.0)
    assert score(truth, np.zeros_like(truth)) == scores.Scores(0.0, 0.0, 0.0)


def test_the_border_of_the_picture_is_boundary_too() -> None:
    mask = np.ones((100, 100), np.bool_)
    assert int(boundary(mask, 3).sum()) == 100 * 100 - 94 * 94


def test_a_boundary_without_corners_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Erosion by a cross instead of a square keeps other pixels: the comparison above tells them apart."""
    mask = blobs(0, 240, 320)
    cross = ndimage.binary_erosion(mask, iterations=boundary_px(240, 320))
    assert (eroded_by_scipy(mask) != (mask & ~cross)).any()
