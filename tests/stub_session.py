"""A session without torch: answers are smooth functions of the question, cheap and of trained size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import DecoderSpec


class StubSession:
    """Draw a cone around each prompt's mean point, tilted by the image."""

    def __init__(self, spec: DecoderSpec) -> None:
        self.spec = spec
        self.tilt = 0.0

    def set_image(self, image: Feed) -> None:
        self.tilt = float(image["image_embeddings"][0, 0].std())

    def decode(self, prompts: Feed) -> Outputs:
        n, size, masks = len(prompts["point_coords"]), self.spec.mask_size, self.spec.masks_out
        padded = np.pad(prompts["point_coords"], ((0, 0), (0, 1), (0, 0)))
        centre = padded.mean(axis=1)[:, None, None, None] / self.spec.image_size * size
        y, x = np.mgrid[:size, :size]
        distance = np.hypot(x - centre[..., 0], y - centre[..., 1]) * 40 / size
        radius = np.arange(3, 3 + masks)[None, :, None, None] + self.tilt
        outputs = {
            "low_res_masks": (radius - distance).astype(np.float32),
            "iou_predictions": np.tile(np.linspace(0.5, 0.9, masks, dtype=np.float32), (n, 1)),
        }
        score = {"object_score_logits": np.full((n, 1), 5, np.float32)}
        return {**outputs, **score} if self.spec.object_score else outputs

    def placement(self) -> Placement:
        return Placement("stub", "cpu", {"cpu": 1}, {"numpy": np.__version__})


def pooled(spec: DecoderSpec) -> Callable[[FloatArray], Feed]:
    """Return an encoder without torch: each feature is the mean of a block of pixels."""

    def encode(values: FloatArray) -> Feed:
        size = values.shape[-1]
        made = {}
        for tensor in spec.image_inputs:
            _, channels, side, _ = map(int, tensor.shape)
            step = size // side
            means = values[:, :, : side * step, : side * step].reshape(1, 3, side, step, side, step).mean((3, 5))
            scale = np.linspace(0.5, 1.5, channels, dtype=np.float32)[None, :, None, None]
            made[tensor.name] = np.ascontiguousarray(means.mean(1, keepdims=True) * scale)
        return made

    return encode
