"""Make a calibration set: images, and prompts of every kind rolled out over them."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from samx.commands.references import picture_reference
from samx.demo import demo_checkpoint
from samx.errors import UsageError, WriteError
from samx.extras import require_export
from samx.models.spec import FrameRule, check_choice
from samx.processing.images import check_free
from samx.progress import Progress, silent

MIB = 1024 * 1024


def calibrate(
    out: Path,
    checkpoint: Path | None = None,
    *,
    family: str = "sam1",
    image_size: int | None = None,
    frame: str | None = None,
    decoder: str | None = None,
    embeddings: Path | None = None,
    pictures: Path | None = None,
    encoder: Path | None = None,
    pixels: str | None = None,
    images: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Roll prompts out over images and write the set, or nothing.

    Without a checkpoint: the demo model of `family`. Images are those of a folder of pictures, which go through the
    checkpoint's own encoder or another one (ONNX); of a folder of embeddings (.npz or .npy); or demo scenes: 16, or all
    where there are fewer.
    Raises: UsageError, CheckpointError, ImageError, InputError; WriteError; MissingExtraError.
    """
    require_export("calibration")
    from samx.models.checkpoint import load_checkpoint
    from samx.quantization.rollout import DEFAULT_SAMPLES, build_set, calibration_reference
    from samx.quantization.sources import open_source

    started = time.monotonic()
    check_choice("frame", frame, FrameRule)
    _check(out, seed, overwrite)
    checkpoint = checkpoint or demo_checkpoint(family)
    progress(f"Reading {checkpoint.name}")
    loaded = load_checkpoint(checkpoint, image_size=image_size, frame=frame, decoder=decoder)
    source = open_source(
        checkpoint, loaded.spec, seed, embeddings=embeddings, pictures=pictures, encoder=encoder,
        pixels=pixels, images=images, own=partial(picture_reference, checkpoint, loaded),
    )  # fmt: skip
    samples = DEFAULT_SAMPLES if samples is None else samples
    reference = calibration_reference(loaded)
    found = build_set(reference, loaded.sha256, source, samples=samples, seed=seed, progress=progress)
    size = found.save(out)
    seconds = time.monotonic() - started
    return {
        "path": str(out), "bytes": size, "seconds": seconds, "checkpoint": loaded.name, **found.summary(),
        "summary": f"{len(found.samples)} prompts on {len(found.images)} images in {out} "
                   f"({size / MIB:.1f} MiB, {seconds:.0f} s): {found.source}",
    }  # fmt: skip


def _check(out: Path, seed: int, overwrite: bool) -> None:
    """Refuse what cannot be meant or written before the minute of work, not after it."""
    if seed < 0:
        raise UsageError("seed is negative", found=seed, expected="0 or more")
    check_free(out, overwrite)
    if out.is_dir():
        raise WriteError(f"cannot write '{out}'", found="a folder", fix="Name a file in it.")
    if not out.parent.is_dir():
        fix = "Make it, or choose another place."
        raise WriteError(f"cannot write '{out}'", found=f"no folder '{out.parent}'", fix=fix)
