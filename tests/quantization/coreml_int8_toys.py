"""Toy decoders as float16 Core ML packages, and jobs that quantise them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration_toys import toy_set
from exports import export_job, job_for
from toys import toy_checkpoint

from samx.artifacts.commit import seal
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.formats.coreml.package import package_from_directory
from samx.formats.coreml.program import Program, load_program
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec, sam2_spec
from samx.quantization.calibration import CalibrationSet
from samx.quantization.coreml_rewrite import QUANTISABLE
from samx.quantization.search import Budget, QuantisationJob, Quantised
from samx.runtimes.mil.runtime import MilRuntime, open_artifact

SPECS = {
    "sam1": sam1_spec(image_size=128, mlp_width=64, masks="single", mask_input=True),
    "sam2": sam2_spec(image_size=128, mlp_width=64),
}
ANYTHING = Budget(0.01, 0.01, 1.0)  # random weights give masks that are all border
POINTS = ShapeRange(2, 2, 4)
FEW = ("image projections, layer 0", "token MLP")


def leaving(*groups: str, family: str = "sam1") -> tuple[str, ...]:
    """Name all groups but these."""
    there = [group for group in QUANTISABLE if group != "object score" or family == "sam2"]
    return tuple(group for group in there if group not in groups)


def float_job(
    directory: Path, family: str = "sam1", points: ShapeRange = POINTS, *, budget: Budget = ANYTHING,
    calibration: CalibrationSet | None = None, cache_file: Path | None = None, **options: Any,
) -> QuantisationJob:  # fmt: skip
    """Export a toy's float16 packages, and say how they are to be quantised."""
    job = job_for("coreml", toy_checkpoint(SPECS[family]), SPECS[family], "int8", points=points, **options)
    exported = export_job(job, directory)
    return QuantisationJob(job, exported, directory, calibration or toy_set(), budget, cache_file=cache_file)


def excluding(job: QuantisationJob, groups: Sequence[str]) -> QuantisationJob:
    """Leave groups in floating point."""
    return replace(job, excluded=tuple(groups))


def opened(job: QuantisationJob, quantised: Quantised) -> MilRuntime:
    """Seal what was quantised, and open it with the evaluator."""
    manifest = Manifest(
        "coreml", "int8", job.export.spec, CheckpointEntry("toy", "toy", "0" * 64, 1),
        options=dict(quantised.exported.options),
    )  # fmt: skip
    seal(job.directory, manifest, quantised.exported.files)
    return open_artifact(Artifact.open(job.directory))


def program(directory: Path, folder: str = "decoder.mlpackage") -> Program:
    """Read a package back."""
    return load_program(package_from_directory(directory / folder), folder)
