"""Export the demo model's image encoder beside its decoder, so that a demo artifact takes pictures without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from samx.demo.model import FORMAT_TAG, DemoModel, demo_notes, load_demo
from samx.demo.scenes import generate_scene
from samx.models.graph import Graph
from samx.models.session import Feed
from samx.models.spec import DecoderSpec, TensorSpec
from samx.processing.frames import Frame
from samx.processing.images import to_frame

# Far from every training, validation and held-out seed of samx.demo.
PARITY_SCENES: Sequence[tuple[int, tuple[int, int]]] = ((900_001, (1024, 1024)), (900_002, (1024, 768)))


def is_demo(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is a samx demo model, which carries its own encoder."""
    return checkpoint.suffix == ".safetensors" and demo_notes(checkpoint).get("format") == FORMAT_TAG


def demo_images(checkpoint: Path, spec: DecoderSpec) -> list[Feed]:
    """Encode the demo scenes that parity is judged on: one square, one not."""
    model = load_demo(spec.family, checkpoint, spec.grid)
    return [_encode(model, spec, seed, size) for seed, size in PARITY_SCENES]


@torch.inference_mode()
def _encode(model: DemoModel, spec: DecoderSpec, seed: int, size: tuple[int, int]) -> Feed:
    picture = generate_scene(seed, size).image
    frame = to_frame(np.asarray(picture), Frame.of(spec, picture.shape[1], picture.shape[0]))
    features = model.encoder(torch.from_numpy(frame))
    named = zip(spec.image_inputs, features, strict=True)
    return {tensor.name: feature.numpy() for tensor, feature in named}


def demo_encoder(checkpoint: Path, spec: DecoderSpec) -> Graph:
    """Build the encoder's graph. Shapes: picture (1, 3, S, S), RGB from 0 to 1 -> DecoderSpec.image_inputs."""
    encoder = load_demo(spec.family, checkpoint, spec.grid).encoder
    shape = (1, 3, spec.image_size, spec.image_size)
    picture = TensorSpec("picture", shape, "1", "RGB from 0 to 1, in the decoder's frame")
    return Graph("encoder", encoder, (picture,), spec.image_inputs, allows=frozenset({"Resize"}))
