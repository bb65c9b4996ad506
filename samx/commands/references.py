"""The references of a checkpoint: its image encoder and its decoder in PyTorch, never through an exported file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from samx.artifacts.manifest import EncoderEntry
from samx.artifacts.store import Artifact, digest
from samx.demo import FAMILIES, demo_checkpoint
from samx.errors import ArtifactError, UsageError
from samx.files import open_regular
from samx.picture_encoder import encoder_inputs
from samx.runtimes.heap import kept_heap
from samx.validators.cases import synthetic_images
from samx.validators.other_size import Sized, compare_sizes

if TYPE_CHECKING:
    from typing import Any

    from samx.exporters.base import ExportJob
    from samx.models.checkpoint import LoadedDecoder
    from samx.models.session import Feed
    from samx.processing.images import RgbArray


def weights_of(artifact: Artifact, given: Path | None) -> Path:
    """Find the checkpoint that an artifact was made from: the one that is given, or the demo model's.

    Raises: UsageError where it has to be named.
    """
    if given is not None:
        return given
    entry = artifact.manifest.checkpoint
    for family in FAMILIES:
        path = demo_checkpoint(family)
        with open_regular(path, f"checkpoint '{path}'") as file:
            if digest(file)[0] == entry.sha256:
                return path
    raise UsageError(
        f"{artifact.path} was made from a checkpoint that has to be named", found="no --checkpoint",
        expected=f"{entry.name}, SHA-256 {entry.sha256[:16]}...", fix=f"Add --checkpoint {entry.name}, with its path.",
    )  # fmt: skip


def job_of(artifact: Artifact, checkpoint: Path) -> ExportJob:
    """Read the checkpoint as it was read for the artifact.

    Raises: ArtifactError when the artifact was made from another checkpoint.
    """
    from samx.exporters.base import ExportJob
    from samx.models.checkpoint import load_checkpoint

    manifest = artifact.manifest
    decoder = manifest.options.get("decoder")
    spec = manifest.spec
    loaded = load_checkpoint(
        checkpoint, image_size=spec.image_size, decoder=decoder, object_pointer=spec.object_pointer
    )
    if loaded.sha256 != manifest.checkpoint.sha256:
        raise ArtifactError(
            f"{artifact.path} was made from another checkpoint", found=f"sha256 {loaded.sha256}",
            expected=f"{manifest.checkpoint.sha256} ({manifest.checkpoint.name})", fix="Name that checkpoint.",
        )  # fmt: skip
    own = {name: getattr(spec, name) for name in ("masks", "mask_input", "frame", "pixels")}
    return ExportJob(loaded, replace(loaded.spec, **own), None, manifest.precision, manifest.target)


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

    spec, decoder = job.spec, job.loaded.prefix
    loaded = load_checkpoint(
        checkpoint, image_size=job.loaded.own_px, frame=spec.frame, pixels=spec.pixels, decoder=decoder,
        object_pointer=spec.object_pointer,
    )  # fmt: skip
    spec = replace(spec, image_size=loaded.spec.image_size)
    own = replace(job, loaded=replace(loaded, spec=spec), spec=spec)
    return compare_sizes(in_torch(checkpoint, own), in_torch(checkpoint, job))


def with_both_signs(
    job: ExportJob, images: list[Feed] | None, source: str | None
) -> tuple[list[Feed] | None, str | None]:
    """Add, where object pointers are exported, an image on which the object score has the other sign.

    Both kinds of pointer are compared then.
    """
    if not job.spec.object_pointer:
        return images, source
    from samx.models.checkpoint import build_reference
    from samx.models.object_pointer import turned

    given = images or synthetic_images(job.spec)
    decoder = build_reference(replace(job.loaded, spec=job.spec))
    return [*given, turned(decoder, given[0])], f"{source or 'synthetic'}; the first one moved to turn object scores"


def picture_reference(checkpoint: Path, loaded: LoadedDecoder) -> Callable[[RgbArray], Feed]:
    """Return a checkpoint's encoder in PyTorch, from a picture (H, W, 3) to the decoder's image inputs.

    Raises: UsageError where it has none that samx knows.
    """
    import torch

    from samx.exporters.base import ExportJob
    from samx.exporters.encoder import load_encoder
    from samx.models.encoders.picture import ONE_PICTURE, picture_graph

    found, spec = load_encoder(checkpoint, ExportJob(loaded, loaded.spec, None)), loaded.spec
    if found.encoder is None:
        raise UsageError(
            f"'{checkpoint.name}' has no image encoder that samx knows", found=" ".join(found.notes) or None,
            expected="an encoder for the pictures",
            fix="Give one as ONNX: --encoder FILE.onnx with --pixels; or --embeddings DIR instead of pictures.",
        )  # fmt: skip
    module = found.encoder.module
    graph = picture_graph(module, spec)
    entry = EncoderEntry(found.encoder.architecture.name, module.picture_px, "fp32", ONE_PICTURE)

    @torch.inference_mode()
    def encode(picture: RgbArray) -> Feed:
        taken = encoder_inputs([picture], spec, entry)
        with kept_heap():
            features = graph.module(*(torch.from_numpy(taken[tensor.name]) for tensor in graph.inputs))
        return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, features, strict=True)}

    return encode
