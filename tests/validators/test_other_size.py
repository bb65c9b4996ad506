"""Two sizes of the same weights: what is compared, and that a difference shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from samx.demo import demo_checkpoint
from samx.demo.model import demo_encoder
from samx.models.checkpoint import load_checkpoint
from samx.models.session import Feed, FloatArray
from samx.runtimes.torch import reference_encoder, reference_session
from samx.validators.other_size import Sized, compare_sizes, told
from samx.validators.pictures import package_pictures

PHOTOS = package_pictures(256)[:1]


@pytest.fixture(scope="module")
def model() -> Sized:
    checkpoint = demo_checkpoint("sam2")
    loaded = load_checkpoint(checkpoint)
    module = demo_encoder(checkpoint, loaded.spec).module
    return Sized(reference_encoder(module, loaded.spec), reference_session(loaded, loaded.spec), module.picture_px)


def test_the_same_model_twice_has_the_same_masks(model: Sized) -> None:
    found = compare_sizes(model, model, PHOTOS)
    assert found["mask_iou_mean"] == found["mask_iou_p05"] == found["mask_iou_mean_all"] == 1
    assert found["own_px"] == found["px"] == model.session.spec.image_size
    assert found["masks"] >= 48 / 3


def test_pictures_that_are_upside_down_for_one_give_other_masks(model: Sized) -> None:
    def turned(pixels: FloatArray) -> Feed:
        return model.encode(np.ascontiguousarray(pixels[..., ::-1, :]))

    found = compare_sizes(model, replace(model, encode=turned), PHOTOS)
    assert found["mask_iou_mean"] < 0.8
    assert f"{found['mask_iou_mean']:.4f}" in told(found)


def test_a_slower_encoder_shows(model: Sized) -> None:
    """The clock is the test's own: it moves while an encoder works, and at no other time."""
    now = 0.0

    def taking(seconds: float) -> Callable[[FloatArray], Feed]:
        def encode(pixels: FloatArray) -> Feed:
            nonlocal now
            now += seconds
            return model.encode(pixels)

        return encode

    own, slow = (replace(model, encode=taking(seconds)) for seconds in (0.25, 1.5))
    found = compare_sizes(own, slow, PHOTOS, clock=lambda: now)
    assert (found["own_seconds"], found["seconds"]) == (0.25, 1.5)
    assert "takes 1.50 s instead of 0.25 s" in told(found)
