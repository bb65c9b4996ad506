"""Export the demo model's image encoder beside its decoder, so that a demo artifact takes pictures without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from samx.demo.model import FORMAT_TAG, DemoModel, demo_notes, load_demo
from samx.demo.scenes import generate_scene
from samx.exporters.tracing import to_onnx
from samx.models.session import Feed
from samx.models.spec import DecoderSpec
from samx.processing.frames import Frame
from samx.processing.images import to_frame

ENCODER_FILE = "encoder.onnx"
ENCODER_OPSET = 18
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


def export_encoder(checkpoint: Path, spec: DecoderSpec, directory: Path) -> None:
    """Write the encoder as ONNX. Shapes: picture (1, 3, S, S), RGB from 0 to 1 -> DecoderSpec.image_inputs."""
    encoder = load_demo(spec.family, checkpoint, spec.grid).encoder
    example = torch.zeros(1, 3, spec.image_size, spec.image_size)
    names = [tensor.name for tensor in spec.image_inputs]
    model = to_onnx(encoder, (example,), opset=ENCODER_OPSET, inputs=["picture"], outputs=names)
    (directory / ENCODER_FILE).write_bytes(model.SerializeToString())
