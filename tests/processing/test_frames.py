"""Frames: where picture pixels land in the decoder's square."""

from __future__ import annotations

import numpy as np
import pytest

from samx.errors import ImageError
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.processing.frames import Frame

# (width, height) -> the valid part that Meta's ResizeLongestSide.get_preprocess_shape gives for 1024 px.
SAM1_VALID = {
    (1024, 1024): (1024, 1024),
    (640, 480): (1024, 768),
    (480, 640): (768, 1024),
    (1023, 767): (1024, 768),
    (3000, 1): (1024, 0),
    (1500, 1): (1024, 1),
    (500, 333): (1024, 682),
    (1800, 1200): (1024, 683),
    (1, 1): (1024, 1024),
}


@pytest.mark.parametrize("size", [size for size, valid in SAM1_VALID.items() if min(valid) > 0])
def test_sam1_resizes_the_longest_side(size: tuple[int, int]) -> None:
    frame = Frame.of(sam1_spec(), *size)
    assert (frame.valid_width_px, frame.valid_height_px) == SAM1_VALID[size]


@pytest.mark.parametrize("size", SAM1_VALID)
def test_sam2_resizes_both_sides(size: tuple[int, int]) -> None:
    frame = Frame.of(sam2_spec(), *size)
    assert (frame.valid_width_px, frame.valid_height_px) == (1024, 1024)


def test_points_scale_with_the_rounded_side_and_not_with_the_common_factor() -> None:
    frame = Frame.of(sam1_spec(), 500, 333)
    np.testing.assert_allclose(frame.to_frame([250, 333]), [512, 682], atol=0)


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec(), sam1_spec(image_size=256)])
def test_the_picture_corner_is_the_corner_of_the_valid_part(spec: DecoderSpec) -> None:
    frame = Frame.of(spec, 777, 431)
    np.testing.assert_allclose(frame.to_frame([777, 431]), [frame.valid_width_px, frame.valid_height_px], rtol=1e-6)


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec()])
def test_moving_there_and_back_changes_nothing(spec: DecoderSpec) -> None:
    frame = Frame.of(spec, 777, 431)
    points = np.random.default_rng(0).uniform(0, 431, (50, 2))
    np.testing.assert_allclose(frame.to_picture(frame.to_frame(points)), points, rtol=1e-6)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (3000, 1), (1, 5000)])
def test_pictures_that_leave_no_pixels_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} px"):
        Frame.of(sam1_spec(), *size)
