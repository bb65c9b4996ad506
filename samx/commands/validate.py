"""Judge an artifact again: on this machine, against its stored expectations or a checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from samx.artifacts.store import Artifact
from samx.commands import video
from samx.commands.references import in_torch, job_of
from samx.models.session import Outputs
from samx.registry import backend
from samx.validators.child import ENCODER_SUITE_ROLE, SUITE_ROLE, gate_in_child
from samx.validators.encoder_suite import EncoderSuite
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite
from samx.validators.video_pieces import check, stored, written

if TYPE_CHECKING:
    from samx.exporters.base import ExportJob


def validate(
    path: Path, *, device: str = "cpu", threads: int | None = None, checkpoint: Path | None = None,
    seed: int | None = None,
) -> ParityReport:  # fmt: skip
    """Compare an artifact's outputs with what PyTorch computed at export, or computes now from the checkpoint.

    A seed repeats what an earlier run drew; its report names it. Without a checkpoint this needs NumPy and the
    artifact's runtime only.
    Raises: ArtifactError, MissingExtraError, UnavailableError; ParityError when the check gives no verdict.
    """
    artifact = Artifact.open(path)
    entry = backend(artifact.manifest.target)
    entry.require_device(device)
    level = entry.level(device)
    if checkpoint is None:
        report = gate_in_child(path, level=level, device=device, threads=threads, seed=seed)
        return _with_pieces(report, artifact, stored(artifact) if written(artifact) else {})
    job = job_of(artifact, checkpoint)
    with tempfile.TemporaryDirectory(prefix="samx-validate-") as folder:
        suite, pictures = Path(folder, "suite.npz"), Path(folder, "pictures.npz")
        _fresh_suite(artifact, job).save(suite)
        if has_encoder := artifact.manifest.encoder is not None:
            pictures.write_bytes(_fresh_pictures(artifact, checkpoint, job).to_bytes())
        report = gate_in_child(
            path, level=level, device=device, threads=threads, suite=suite, seed=seed,
            pictures=pictures if has_encoder else None,
        )  # fmt: skip
    pieces = video.in_torch(checkpoint, job, written(artifact))
    return _with_pieces(report, artifact, {piece.role: piece.expected(job) for piece in pieces})


def _with_pieces(report: ParityReport, artifact: Artifact, expected: Mapping[str, Sequence[Outputs]]) -> ParityReport:
    """Add what is wrong with the pieces of a video's loop, and which were compared."""
    if not expected:
        return report
    failures = (*report.failures, *check(artifact, expected))
    return replace(report, failures=failures, suite={**report.suite, "video_pieces": list(expected)})


def _fresh_suite(artifact: Artifact, job: ExportJob) -> ParitySuite:
    """Ask the reference anew, on the artifact's own cases."""
    from samx.runtimes.torch import reference_session

    stored = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)))
    return ParitySuite.build(reference_session(job.loaded, job.spec), stored.images, stored.cases, stored.image_source)


def _fresh_pictures(artifact: Artifact, checkpoint: Path, job: ExportJob) -> EncoderSuite:
    """Ask the reference encoder anew, about the artifact's own pictures."""
    stored = EncoderSuite.load(artifact.read(artifact.file_with_role(ENCODER_SUITE_ROLE)))
    tokens = [one.prompts["point_labels"].shape[1] for picture in stored.pictures for one in picture.answers]
    model, photos = in_torch(checkpoint, job), [(picture.name, picture.photo) for picture in stored.pictures]
    return EncoderSuite.build(
        model.encode, model.session, model.picture_px, photos, seed=stored.seed, most_points=max(tokens)
    )
