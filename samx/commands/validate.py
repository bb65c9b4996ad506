"""Judge an artifact again: on this machine, against its stored expectations or a checkpoint."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError
from samx.registry import backend
from samx.validators.child import SUITE_ROLE, gate_in_child
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite


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
        return gate_in_child(path, level=level, device=device, threads=threads, seed=seed)
    with tempfile.TemporaryDirectory(prefix="samx-validate-") as folder:
        suite = Path(folder, "suite.npz")
        _fresh_suite(artifact, checkpoint).save(suite)
        return gate_in_child(path, level=level, device=device, threads=threads, suite=suite, seed=seed)


def _fresh_suite(artifact: Artifact, checkpoint: Path) -> ParitySuite:
    """Ask the reference anew, on the artifact's own cases.

    Raises: ArtifactError when the artifact was made from another checkpoint.
    """
    from samx.models.checkpoint import load_checkpoint
    from samx.runtimes.torch import reference_session

    manifest = artifact.manifest
    loaded = load_checkpoint(checkpoint, image_size=manifest.spec.image_size)
    if loaded.sha256 != manifest.checkpoint.sha256:
        raise ArtifactError(
            f"{artifact.path} was made from another checkpoint", found=f"sha256 {loaded.sha256}",
            expected=f"{manifest.checkpoint.sha256} ({manifest.checkpoint.name})", fix="Name that checkpoint.",
        )  # fmt: skip
    own = {name: getattr(manifest.spec, name) for name in ("masks", "mask_input", "frame", "pixels")}
    spec = replace(loaded.spec, **own)
    stored = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)))
    return ParitySuite.build(reference_session(loaded, spec), stored.images, stored.cases, stored.image_source)
