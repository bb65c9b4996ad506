"""Box prompts: at random, the same for everybody who asks for the same round; or round the objects of a demo scene."""

from __future__ import annotations

import numpy as np

from samx.demo.scenes import LEVELS, generate_scene
from samx.models.session import Feed, FloatArray
from samx.models.spec import LABELS, DecoderSpec

SEED = 20
MIN_SIDE_PX = 16  # one cell of the embedding grid


def box_feed(spec: DecoderSpec, number: int, count: int) -> Feed:
    """Draw boxes inside the frame. Shapes: -> DecoderSpec.prompt_inputs without masks, two points a prompt."""
    rng = np.random.default_rng([SEED, number, count])
    top_left = rng.uniform(0, spec.image_size - MIN_SIDE_PX, (count, 2))
    bottom_right = rng.uniform(top_left + MIN_SIDE_PX, spec.image_size)
    corners = [LABELS["box_top_left"], LABELS["box_bottom_right"]]
    return {
        "point_coords": np.stack([top_left, bottom_right], axis=1).astype(np.float32),
        "point_labels": np.tile(np.array(corners, np.float32), (count, 1)),
    }


def object_boxes(seed: int, size_px: tuple[int, int]) -> FloatArray:
    """Draw a box round every region of a scene that is not tiny. Shapes: -> (N, 2, 2), corners in px."""
    scene = generate_scene(seed, size_px)
    places = [np.argwhere(mask) for level in LEVELS for mask in scene.masks(level)]  # (row, column)
    corners = [np.stack([place.min(0), place.max(0) + 1])[:, ::-1] for place in places]
    return np.array([box for box in corners if (box[1] - box[0]).min() >= MIN_SIDE_PX], np.float32)
