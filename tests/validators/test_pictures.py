"""The pictures of the package are of every aspect, and lie in a square as Pillow would lay them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from samx.errors import ImageError
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.validators.pictures import check_photo, frame_of, framed, package_pictures, resizing_problems

SPECS = {"pad": sam1_spec(), "stretch": sam2_spec()}


def test_pictures_are_of_every_aspect() -> None:
    pictures = dict(package_pictures(256))
    aspects = {name.split(",")[0]: photo.shape[1] / photo.shape[0] for name, photo in pictures.items()}
    assert list(aspects) == ["square", "second", "wide", "tall", "thin"]
    assert aspects["square"] == 1
    assert aspects["wide"] == 1.5
    assert aspects["tall"] < 0.6
    assert aspects["thin"] > 10
    assert all(photo.dtype == np.uint8 and photo.std() > 20 for photo in pictures.values())


@pytest.mark.parametrize("frame", SPECS)
@pytest.mark.parametrize("picture_px", [96, 1024])
def test_square_is_pillow_s_to_a_level(frame: str, picture_px: int) -> None:
    for name, photo in package_pictures(picture_px):
        place = frame_of(SPECS[frame], picture_px, photo)
        found = framed(photo, place)
        valid = np.asarray(
            Image.fromarray(photo).resize((place.valid_width_px, place.valid_height_px), Image.Resampling.BILINEAR)
        )
        right = np.zeros_like(found)
        right[: len(valid), : len(valid[0])] = valid
        assert resizing_problems(name, right, found, "uint8") == []
        assert found.shape == (picture_px, picture_px, 3)
        assert not found[place.valid_height_px :].any()
        assert not found[:, place.valid_width_px :].any()


def test_square_is_the_same_on_every_machine() -> None:
    """Stored suites hang on it."""
    photo = np.arange(7 * 50 * 3, dtype=np.uint32).reshape(7, 50, 3).astype(np.uint8)
    digests = [
        hashlib.sha256(framed(photo, frame_of(spec, 32, photo)).tobytes()).hexdigest()[:8] for spec in SPECS.values()
    ]
    assert digests == ["11a72651", "a972e5e2"]


@pytest.mark.parametrize("level", [0, 255])
def test_plain_pictures_stay_plain(level: int) -> None:
    photo = np.full((50, 333, 3), level, np.uint8)
    assert (framed(photo, frame_of(SPECS["stretch"], 64, photo)) == level).all()


@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 5000, 3), (2100, 2100, 3)])
def test_picture_of_an_odd_size_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ImageError, match="has an odd size"):
        check_photo(np.zeros(shape, np.uint8), "it")


def test_encoder_s_square_may_be_smaller_than_the_decoder_s() -> None:
    spec: DecoderSpec = SPECS["pad"]
    photo = np.zeros((300, 400, 3), np.uint8)
    assert frame_of(spec, 512, photo).valid_height_px == 384
    assert frame_of(spec, 1024, photo).valid_height_px == 768
