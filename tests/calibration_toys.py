"""A reference whose answers are known, images without a picture, and small calibration sets made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec, sam1_spec
from samx.quantization.calibration import CalibrationSet, calibration_spec, kinds
from samx.quantization.sources import Source, SourceImage
from samx.validators.cases import BOX_LABELS, FOREGROUND, Case

SPEC = calibration_spec(sam1_spec(image_size=128))
RADIUS_PX = 24.0  # of the discs, in the frame: a sixth of it at 128 px
CHECKPOINT = "c" * 64


class DiscReference:
    """Answer with discs round the mean of the points that are meant; `change` plants a fault in the logits."""

    def __init__(self, spec: DecoderSpec = SPEC, change: Callable[[Any], Any] = lambda logits: logits) -> None:
        self.spec, self.change = spec, change
        self.images: list[Feed] = []
        self.asked: list[Feed] = []

    def set_image(self, image: Feed) -> None:
        self.images.append(image)

    def decode(self, prompts: Feed) -> Outputs:
        assert set(prompts) == {tensor.name for tensor in self.spec.prompt_inputs}
        self.asked.append(prompts)
        size, masks = self.spec.mask_size, self.spec.masks_out
        meant = np.isin(prompts["point_labels"], (FOREGROUND, *BOX_LABELS)).astype(np.float32)[..., None]
        centre = (prompts["point_coords"] * meant).sum(1) / np.maximum(meant.sum(1), 1)
        y, x = (np.mgrid[:size, :size] + 0.5) * self.spec.image_size / size
        distance = np.hypot(x - centre[:, :1, None], y - centre[:, 1:, None])[:, None]
        radius = RADIUS_PX * np.linspace(0.8, 1.2, masks)[None, :, None, None]
        outputs = {
            "low_res_masks": np.asarray(self.change(radius - distance), np.float32),
            "iou_predictions": np.tile(np.linspace(0.5, 0.9, masks, dtype=np.float32), (len(centre), 1)),
        }
        score = {"object_score_logits": np.full((len(centre), 1), 5, np.float32)}
        return {**outputs, **score} if self.spec.object_score else outputs

    def placement(self) -> Placement:
        return Placement("discs", "cpu", {"cpu": 1}, {})


def features(spec: DecoderSpec, seed: int) -> Feed:
    """Draw an image's features."""
    rng = np.random.default_rng(seed)
    return {t.name: rng.normal(size=t.shape).astype(np.float32) for t in spec.image_inputs}  # type: ignore[arg-type]


def image(seed: int, spec: DecoderSpec = SPEC, height: float = 1.0) -> SourceImage:
    """Make an image whose regions are not known."""
    return SourceImage(features(spec, seed), (spec.image_size, round(spec.image_size * height)))


def scene(seed: int, spec: DecoderSpec = SPEC) -> SourceImage:
    """Make an image with one square region, a square part in it, and nothing in its lower half."""
    ids = np.zeros((3, spec.mask_size, spec.mask_size), np.uint8)
    quarter = spec.mask_size // 4
    ids[0, 2 : 2 * quarter, quarter : 3 * quarter] = 1
    ids[1, 4:quarter, quarter + 2 : 2 * quarter] = 2
    return replace(image(seed, spec, 0.75), ids=ids)


def source(count: int, make: Callable[..., SourceImage] = image, spec: DecoderSpec = SPEC, **more: Any) -> Source:
    """Make a source of images, numbered as their seeds."""
    return Source(f"{count} toys", [lambda i=i: make(i, spec) for i in range(count)], **more)  # type: ignore[misc]


def click(index: int, images: int, spec: DecoderSpec = SPEC) -> Case:
    """Make a sample; every fifth brings a mask."""
    at = np.array([[[1 + index % 100, 2], [0, 0]]], np.float32)
    prompts: dict[str, Any] = {"point_coords": at, "point_labels": np.array([[1, -1]], np.float32)}
    if index % 5 == 0:
        mask = np.full((1, 1, spec.mask_size, spec.mask_size), 0.125 * (index + 1) + 0.0001, np.float32)
        prompts |= {"mask_input": mask, "has_mask_input": np.ones(1, np.float32)}
    return Case(kinds(40)[index % 40], index % images, prompts)


def toy_set(**changes: Any) -> CalibrationSet:
    """Make a set of four images, 28 samples and four that are held out."""
    fields: dict[str, Any] = {
        "spec": SPEC,
        "images": tuple(features(SPEC, i) for i in range(4)),
        "samples": tuple(click(i, 4) for i in range(28)),
        "held_out": tuple(click(i, 4) for i in range(30, 34)),
        "scenes": (),
        "source": "toys",
        "seed": 3,
        "checkpoint_sha256": CHECKPOINT,
    }
    return CalibrationSet(**{**fields, **changes})
