"""Measure an artifact against labels of the user's own, PyTorch beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.artifacts.commit import write_file
from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.store import Artifact
from samx.commands.outputs import check_apart, check_file, check_place
from samx.commands.references import job_of, picture_reference, weights_of
from samx.errors import UsageError, doubt
from samx.evaluation.asking import Asking
from samx.evaluation.label_files import open_labels
from samx.evaluation.labels import Labels, told
from samx.evaluation.measure import Measurement, Side
from samx.evaluation.page import page
from samx.evaluation.report import MOST_DROP, AccuracyReport
from samx.evaluation.shown import Shown
from samx.extras import require, require_export
from samx.picture_encoder import Encode, PictureEncoder
from samx.progress import Progress, silent
from samx.registry import backend, open_session

if TYPE_CHECKING:
    from samx.processing.images import RgbArray

PURPOSE = "measuring beside PyTorch"


@dataclass(frozen=True)
class Asked:
    """Say what is measured: labels, their pictures, the prompt, how many pictures of them, and what may be lost."""

    data: Path
    pictures: Path | None = None
    prompt: str = "box"
    limit: int | None = None
    seed: int = 0
    max_drop: float = MOST_DROP
    skip_missing: bool = False

    def check(self) -> None:
        """Refuse what cannot be asked.

        Raises: UsageError.
        """
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop <= 1):
            raise UsageError("--max-drop is no share", found=self.max_drop, expected="0 to 1, such as 0.01")
        if self.limit is not None and self.limit < 1:
            raise UsageError("--limit leaves no picture", found=self.limit, expected="1 or more")

    def labels(self, written: Sequence[Path] = ()) -> Labels:
        """Find the labelled pictures that are measured; neither they nor the others may be written over.

        Raises: InputError; UsageError.
        """
        found = open_labels(self.data, self.pictures)
        if replaced := [path for path in written if path.exists()]:
            check_apart(found.files(), replaced)
        return found.present(self.skip_missing).drawn(self.limit, self.seed)


def evaluate(
    path: Path, asked: Asked, *, checkpoint: Path | None = None, device: str = "cpu", threads: int | None = None,
    output: Path | None = None, report: Path | None = None, overwrite: bool = False, progress: Progress = silent,
) -> AccuracyReport:  # fmt: skip
    """Ask an artifact and its checkpoint in PyTorch for every labelled object, and compare the masks with the labels.

    output: where the page goes; report: the JSON file. An artifact that lost too much is no error of this call.
    Raises: ArtifactError, InputError, ImageError, UsageError, WriteError, MissingExtraError, UnavailableError;
    ParityError on outputs that are not finite.
    """
    asked.check()
    asking = Asking.parse(asked.prompt, asked.seed)
    written = [one for one in (output, report) if one is not None]
    labels_file = asked.data if asked.data.is_file() else None
    _check_files(written, overwrite, [one for one in (path, labels_file, checkpoint) if one is not None])
    if output is not None:
        require("jinja2", "report", "writing a report's page")
    require_export(PURPOSE)
    artifact = Artifact.open(path)
    weights = weights_of(artifact, checkpoint)
    labels = asked.labels(written)
    truths = labels.truths(progress)
    progress("Reading the checkpoint")
    sides, encoder = _sides(artifact, weights, device, threads)
    shown = Shown(output is not None)
    rows = Measurement(sides, asking, shown).run(truths, labels.left_out, progress)
    if not rows:
        raise UsageError(
            f"no object can be asked for with '{asked.prompt}'", found=told(labels.left_out),
            expected="objects of more pixels", fix="Ask with --prompt box.",
        )  # fmt: skip
    result = AccuracyReport(
        _facts(artifact, device, encoder), _about(labels, len(truths)), asked.prompt, asked.seed, asked.max_drop,
        {name: count for name, count in sorted(labels.left_out.items()) if count}, tuple(rows),
    )  # fmt: skip
    progress("Writing")
    if report is not None:
        write_file(report, result.to_bytes())
    if output is not None:
        write_file(output, page(result, shown).encode("utf-8", "replace"))
    return result


def _check_files(written: Sequence[Path], overwrite: bool, read: Sequence[Path]) -> None:
    """Refuse, before the work, what could not be written after it, or would be written over what is read."""
    check_apart(read, written)
    for path in written:
        check_place(path)
        check_file(path, overwrite)


def _sides(artifact: Artifact, weights: Path, device: str, threads: int | None) -> tuple[dict[str, Side], str]:
    """Open the checkpoint in PyTorch and the artifact where its target runs; say whose encoder makes its features.

    Raises: as evaluate().
    """
    from samx.runtimes.torch import reference_session

    backend(artifact.manifest.target).require_device(device)
    job = job_of(artifact, weights)
    one = picture_reference(weights, replace(job.loaded, spec=job.spec))  # with the export's frame and pixels

    def in_torch(pictures: Iterable[RgbArray]) -> Iterable[Any]:
        return map(one, pictures)

    encode: Encode = in_torch
    if has_encoder := any(file.role == ENCODER_ROLE for file in artifact.manifest.files.values()):
        encode = PictureEncoder(artifact, device=device, threads=threads)
    else:
        doubt(f"{artifact.path} has no image encoder: PyTorch's makes the features for both, and its error is not seen")
    session = open_session(artifact, device, threads)
    sides = {"pytorch": Side(in_torch, reference_session(job.loaded, job.spec)), "artifact": Side(encode, session)}
    return sides, "the artifact's" if has_encoder else "PyTorch's"


def _facts(artifact: Artifact, device: str, encoder: str) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "name": artifact.path.resolve().name, "target": manifest.target, "precision": manifest.precision,
        "masks": manifest.spec.masks, "checkpoint": manifest.checkpoint.name,
        "checkpoint_sha256": manifest.checkpoint.sha256, "device": device, "image_encoder": encoder,
    }  # fmt: skip


def _about(labels: Labels, pictures: int) -> dict[str, Any]:
    return {"kind": labels.kind, "source": str(labels.source), "pictures": pictures}
