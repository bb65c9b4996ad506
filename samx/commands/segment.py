"""Segment a picture with an artifact: picture -> features -> masks -> overlay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samx.artifacts.store import Artifact
from samx.errors import ImageError, UsageError
from samx.models.session import Feed, Session
from samx.processing.frames import Frame
from samx.processing.images import normalised, read_embedding, read_image, to_frame
from samx.processing.overlay import overlay
from samx.processing.postprocess import SegmentedMask, segment
from samx.processing.prompts import Prompt, decode_prompts
from samx.registry import backend, load

ENCODER_ROLE = "encoder"


@dataclass(frozen=True)
class Source:
    """Say where a picture's features come from: an embedding file, an encoder, or (neither) the artifact's own."""

    embedding: Path | None
    encoder: Path | None
    pixels: str


@dataclass(frozen=True)
class Segmentation:
    """Hold the picture, what was asked, and the best mask of each prompt."""

    picture: NDArray[np.uint8]
    prompts: Sequence[Prompt]
    masks: Sequence[SegmentedMask]

    def draw(self) -> Image.Image:
        """Draw masks and prompts over the picture."""
        return overlay(self.picture, [mask.mask for mask in self.masks], self.prompts)


def segment_picture(
    image: Path, model: Path, prompts: Sequence[Prompt], *,
    embedding: Path | None = None, encoder: Path | None = None, pixels: str = "unit",
    device: str = "cpu", threads: int | None = None,
) -> Segmentation:  # fmt: skip
    """Find the best mask for each prompt on a picture.

    The picture's features come from the artifact's own encoder (the demo model), an encoder ONNX, or an embedding file.
    Raises: ArtifactError, ImageError, PromptError; UsageError when there is no encoder.
    """
    artifact = Artifact.open(model)
    spec = artifact.manifest.spec
    picture = read_image(image)
    frame = Frame.of(spec, picture.shape[1], picture.shape[0])
    source = Source(embedding, encoder, pixels)
    features = _features(artifact, picture, frame, source, threads)
    entry = backend(artifact.manifest.target)
    entry.require_device(device)
    session: Session = load(entry.runner(device).runtime)(artifact, device=device, threads=threads)
    session.set_image(features)
    outputs = decode_prompts(session, prompts, frame)
    return Segmentation(picture, prompts, list(segment(outputs, frame, spec.mask_threshold)))


def _features(
    artifact: Artifact, picture: NDArray[np.uint8], frame: Frame, source: Source, threads: int | None
) -> Feed:
    """Get the picture's features from the one source that there is."""
    if source.embedding is not None and source.encoder is not None:
        raise UsageError("two sources of features", found="--embedding and --encoder", expected="one of them")
    if source.embedding is not None:
        return read_embedding(source.embedding, artifact.manifest.spec)
    from samx.runtimes.onnxruntime import run_encoder

    model, name = _encoder(artifact, source.encoder)
    features = run_encoder(model, name, normalised(to_frame(picture, frame), frame, source.pixels), threads)
    expected = [tensor.name for tensor in artifact.manifest.spec.image_inputs]
    if not set(expected) <= set(features):
        raise ImageError(f"encoder '{name}' gives other features", found=sorted(features), expected=expected)
    return {key: features[key] for key in expected}


def _encoder(artifact: Artifact, encoder: Path | None) -> tuple[bytes, str]:
    if encoder is not None:
        try:
            return encoder.read_bytes(), encoder.name
        except OSError as cause:
            raise ImageError(f"cannot read the encoder '{encoder}'", found=cause.strerror) from cause
    own = [name for name, entry in artifact.manifest.files.items() if entry.role == ENCODER_ROLE]
    if not own:
        raise UsageError(
            f"{artifact.path} has no image encoder", expected="an encoder or the picture's embedding",
            fix="Give --encoder FILE.onnx, or --embedding FILE.npz made by your model's encoder.",
        )  # fmt: skip
    return artifact.read(own[0]), own[0]
