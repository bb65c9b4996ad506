"""Make a calibration set: images, and prompts of every kind rolled out over them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samx.demo import demo_checkpoint
from samx.errors import UsageError, WriteError
from samx.extras import require_export
from samx.models.spec import FrameRule, check_choice
from samx.processing.images import check_free
from samx.progress import Progress, silent
from samx.quantization.calibration import CalibrationSet

MIB = 1024 * 1024


@dataclass(frozen=True)
class CalibrateRequest:
    """Say what to calibrate, on which images, and where the set goes. No images named: demo scenes."""

    out: Path
    checkpoint: Path | None = None  # None: the demo model of `family`
    family: str = "sam1"
    image_size: int | None = None  # this and the next: None where the checkpoint or its family tells
    frame: str | None = None
    embeddings: Path | None = None  # folder of .npz or .npy files
    pictures: Path | None = None  # folder, with `encoder`
    encoder: Path | None = None  # ONNX file
    pixels: str | None = None  # what it takes
    images: int | None = None  # None: 16, or all where there are fewer
    samples: int | None = None  # None: 96
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class CalibrateResult:
    """Hold the set that was written."""

    path: Path
    calibration: CalibrationSet
    checkpoint: str
    bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Give the facts as plain data."""
        facts = {"path": str(self.path), "bytes": self.bytes, "seconds": self.seconds, "checkpoint": self.checkpoint}
        return {**facts, **self.calibration.summary()}

    def summary(self) -> str:
        """Say in one line what was made."""
        found = self.calibration
        return (
            f"{len(found.samples)} prompts on {len(found.images)} images in {self.path} "
            f"({self.bytes / MIB:.1f} MiB, {self.seconds:.0f} s): {found.source}"
        )


def calibrate(request: CalibrateRequest, progress: Progress = silent) -> CalibrateResult:
    """Roll prompts out over images and write the set, or nothing.

    Raises: UsageError, CheckpointError, ImageError, InputError; WriteError; MissingExtraError.
    """
    require_export("calibration")
    from samx.models.checkpoint import load_checkpoint
    from samx.quantization.rollout import DEFAULT_SAMPLES, build_set, calibration_reference
    from samx.quantization.sources import open_source

    started = time.monotonic()
    _check(request)
    checkpoint = request.checkpoint or demo_checkpoint(request.family)
    progress(f"Reading {checkpoint.name}")
    loaded = load_checkpoint(checkpoint, image_size=request.image_size, frame=request.frame)
    source = open_source(
        checkpoint, loaded.spec, request.seed, embeddings=request.embeddings, pictures=request.pictures,
        encoder=request.encoder, pixels=request.pixels, images=request.images,
    )  # fmt: skip
    samples = DEFAULT_SAMPLES if request.samples is None else request.samples
    reference = calibration_reference(loaded)
    found = build_set(reference, loaded.sha256, source, samples=samples, seed=request.seed, progress=progress)
    size = found.save(request.out)
    return CalibrateResult(request.out, found, loaded.name, size, time.monotonic() - started)


def _check(request: CalibrateRequest) -> None:
    """Refuse what cannot be meant or written before the minute of work, not after it."""
    check_choice("frame", request.frame, FrameRule)
    if request.seed < 0:
        raise UsageError("seed is negative", found=request.seed, expected="0 or more")
    check_free(request.out, request.overwrite)
    if request.out.is_dir():
        raise WriteError(f"cannot write '{request.out}'", found="a folder", fix="Name a file in it.")
    if not request.out.parent.is_dir():
        fix = "Make it, or choose another place."
        raise WriteError(f"cannot write '{request.out}'", found=f"no folder '{request.out.parent}'", fix=fix)
