"""The image encoder that makes pictures' features: an artifact's own, or an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.manifest import ENCODER_ROLE, EncoderEntry
from samx.artifacts.store import Artifact
from samx.errors import ImageError, UsageError, doubt
from samx.files import GRAPH_CAP_BYTES, read_file
from samx.models.session import Feed, FloatArray
from samx.models.spec import PIXELS_OF_OLD, DecoderSpec
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, check_pixels, normalised, to_frame, to_levels
from samx.registry import GRAPH_DEVICE, backend, load
from samx.runtimes.onnxruntime import open_float_encoder

Encode = Callable[[Iterable[RgbArray]], Iterable[Feed]]
RunLevels = Callable[[Mapping[str, NDArray[Any]]], Feed]


@dataclass
class PictureEncoder:
    """Run an image encoder on pictures, the artifact's own or a file; it is opened for the first of them.

    pixels: what a file's encoder takes.
    Raises: UsageError for a file without that.
    """

    artifact: Artifact
    file: Path | None = None
    pixels: str | None = None
    device: str = GRAPH_DEVICE
    threads: int | None = None
    _encode: Encode | None = None

    def __post_init__(self) -> None:
        check_pixels(self.file, self.pixels)

    def __call__(self, pictures: Iterable[RgbArray]) -> Iterable[Feed]:
        """Return the features that the decoder takes, picture by picture.

        Raises: UsageError when there is no encoder; ImageError when it returns other features; as the runtime.
        """
        return self.prepare()(pictures)

    def prepare(self) -> Encode:
        """Open it now.

        Raises: as for the first picture.
        """
        if self._encode is None:
            self._encode = self._opened()
        return self._encode

    def _opened(self) -> Encode:
        manifest = self.artifact.manifest
        if self.file is not None:
            model = read_file(self.file, GRAPH_CAP_BYTES, f"encoder '{self.file}'", ImageError)
            return self._of_floats(model, self.file.name)
        own = [name for name, entry in manifest.files.items() if entry.role == ENCODER_ROLE]
        if not own:
            raise UsageError(
                f"{self.artifact.path} has no image encoder",
                expected=f"an encoder, or the picture's embedding: {manifest.spec.embedding_contract}",
                fix="Give set_image(embedding=..., original_size=...) or samx.open(..., encoder='FILE.onnx'); "
                "in the shell --embedding FILE.npz or --encoder FILE.onnx.",
            )  # fmt: skip
        if manifest.encoder is None:
            return self._of_floats(self.artifact.read(own[0]), own[0])
        if self.pixels is not None:
            found, fix = f"pixels {self.pixels}", "Leave it out, or name the encoder that takes them."
            raise UsageError("this artifact's encoder normalises pixels itself", found=found, fix=fix)
        return partial(encode_levels, self.opened_levels(), manifest.spec, manifest.encoder)

    def opened_levels(self) -> RunLevels:
        """Open the artifact's encoder of levels where its target runs it; else on the processor, which is said."""
        target = self.artifact.manifest.target
        opener, device = backend(target).encoder_opener(self.device)
        if device != self.device:
            doubt(f"ONNX Runtime runs the image encoder, on the CPU: '{target}' has none for '{self.device}'")
        run: RunLevels = load(opener)(self.artifact, device, self.threads)
        return run

    def _of_floats(self, model: bytes, name: str) -> Encode:
        spec = self.artifact.manifest.spec
        pixels = self.pixels or spec.pixels or PIXELS_OF_OLD
        return partial(encode_floats, open_float_encoder(model, name, self.threads), spec, pixels)


def framed_features(encode: Encode, spec: DecoderSpec, pictures: Iterable[RgbArray]) -> list[tuple[Frame, Feed]]:
    """Encode pictures, each read when it is its turn; return each one's place in the decoder's frame with it."""
    frames: list[Frame] = []

    def framed() -> Iterator[RgbArray]:
        for picture in pictures:
            frames.append(Frame.of(spec, picture.shape[1], picture.shape[0]))
            yield picture

    found = list(encode(framed()))
    return list(zip(frames, found, strict=True))


def encode_floats(
    run: Callable[[FloatArray], Feed], spec: DecoderSpec, pixels: str, pictures: Iterable[RgbArray]
) -> Iterator[Feed]:
    """Encode pictures one by one, normalised as the encoder wants them."""
    for picture in pictures:
        frame = Frame.of(spec, picture.shape[1], picture.shape[0])
        yield _checked(run(normalised(to_frame(picture, frame), frame, pixels)), spec)


def encode_levels(
    run: RunLevels, spec: DecoderSpec, entry: EncoderEntry, pictures: Iterable[RgbArray]
) -> Iterator[Feed]:
    """Encode pictures, as many in a call as the export takes."""
    waiting = iter(pictures)
    while batch := list(islice(waiting, entry.pictures.max)):
        found = _checked(run(encoder_inputs(batch, spec, entry)), spec)
        yield from ({name: value[i : i + 1] for name, value in found.items()} for i in range(len(batch)))


def encoder_inputs(pictures: Sequence[RgbArray], spec: DecoderSpec, entry: EncoderEntry) -> dict[str, NDArray[Any]]:
    """Resize pictures for an encoder that takes levels; where it takes more, the last one is repeated.

    Shapes: (H, W, 3) each -> picture (B, S, S, 3), and where the family pads valid (B, 2).
    """
    frames = [Frame.of(spec, picture.shape[1], picture.shape[0], entry.picture_px) for picture in pictures]
    framed = [to_levels(picture, frame) for picture, frame in zip(pictures, frames, strict=True)]
    valid = [(frame.valid_height_px, frame.valid_width_px) for frame in frames]
    missing = max(entry.pictures.min - len(pictures), 0)
    picture = np.stack([*framed, *framed[-1:] * missing])
    if not spec.keeps_aspect:
        return {"picture": picture}
    return {"picture": picture, "valid": np.array([*valid, *valid[-1:] * missing], np.int32)}


def _checked(found: Feed, spec: DecoderSpec) -> Feed:
    expected = [tensor.name for tensor in spec.image_inputs]
    if not set(expected) <= set(found):
        raise ImageError("the encoder returns other features", found=sorted(found), expected=spec.embedding_contract)
    return {name: found[name] for name in expected}
