"""The image encoder that makes a picture's features: an artifact's own, or an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from samx.artifacts.store import Artifact
from samx.errors import ImageError, UsageError
from samx.files import GRAPH_CAP_BYTES, read_file
from samx.models.session import Feed, FloatArray
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, check_pixels, normalised, to_frame
from samx.runtimes.onnxruntime import open_encoder

ENCODER_ROLE = "encoder"
PIXELS_OF_OLD = "unit"  # what 0.1.0 gave every encoder unasked, and its demo's takes


@dataclass
class PictureEncoder:
    """Run an image encoder on pictures, the artifact's own or a file; it is opened for the first of them.

    pixels: what a file's encoder takes; the artifact's own: what the artifact says of its model.
    Raises: UsageError for a file without that.
    """

    artifact: Artifact
    file: Path | None
    pixels: str | None
    threads: int | None
    _run: Callable[[FloatArray], Feed] | None = None

    def __post_init__(self) -> None:
        check_pixels(self.file, self.pixels)

    def __call__(self, picture: RgbArray, frame: Frame) -> Feed:
        """Return the features that the decoder takes.

        Raises: UsageError when there is no encoder; ImageError when it returns other features.
        """
        if self._run is None:
            self._run = open_encoder(*self._model(), self.threads)
        kind = self.pixels or self.artifact.manifest.spec.pixels or PIXELS_OF_OLD
        found = self._run(normalised(to_frame(picture, frame), frame, kind))
        expected = [tensor.name for tensor in self.artifact.manifest.spec.image_inputs]
        if not set(expected) <= set(found):
            contract = self.artifact.manifest.spec.embedding_contract
            raise ImageError("the encoder returns other features", found=sorted(found), expected=contract)
        return {key: found[key] for key in expected}

    def _model(self) -> tuple[bytes, str]:
        if self.file is not None:
            return read_file(self.file, GRAPH_CAP_BYTES, f"encoder '{self.file}'", ImageError), self.file.name
        own = [name for name, entry in self.artifact.manifest.files.items() if entry.role == ENCODER_ROLE]
        if not own:
            raise UsageError(
                f"{self.artifact.path} has no image encoder",
                expected=f"an encoder, or the picture's embedding: {self.artifact.manifest.spec.embedding_contract}",
                fix="Give set_image(embedding=..., original_size=...) or samx.open(..., encoder='FILE.onnx'); "
                "in the shell --embedding FILE.npz or --encoder FILE.onnx.",
            )  # fmt: skip
        return self.artifact.read(own[0]), own[0]
