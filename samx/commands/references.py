"""The references of a checkpoint: its image encoder and its decoder in PyTorch, never through an exported file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from samx.validators.other_size import Sized, compare_sizes

if TYPE_CHECKING:
    from typing import Any

    from samx.exporters.base import ExportJob


def in_torch(checkpoint: Path, job: ExportJob) -> Sized:
    """Build a checkpoint's encoder and decoder for a job. Both are read anew: what was exported may be rewritten.

    Raises: CheckpointError.
    """
    from samx.exporters.encoder import load_encoder
    from samx.runtimes.torch import reference_encoder, reference_session

    found = load_encoder(checkpoint, job).encoder
    assert found is not None, "it was exported"
    encode = reference_encoder(found.module, job.spec)
    return Sized(encode, reference_session(job.loaded, job.spec), found.module.picture_px)


def beside_own_size(checkpoint: Path, job: ExportJob) -> dict[str, Any]:
    """Compare the size that a job asks for with the one that the checkpoint has.

    Raises: CheckpointError.
    """
    from samx.models.checkpoint import load_checkpoint

    given = {"frame": job.spec.frame, "pixels": job.spec.pixels}
    loaded = load_checkpoint(checkpoint, image_size=job.loaded.own_px, **given)
    spec = replace(job.spec, image_size=loaded.spec.image_size)
    own = replace(job, loaded=replace(loaded, spec=spec), spec=spec)
    return compare_sizes(in_torch(checkpoint, own), in_torch(checkpoint, job))
