"""Write what TensorRT builds from: one ONNX file with its types in it, the build plan, and a script to repeat it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from samx.exporters.onnx import DECODER_FILE, write_graphs
from samx.exporters.options import Exported, ExportJob
from samx.exporters.tensorrt.reproduce import SCRIPT_FILE, SCRIPT_ROLE, reproduce_script
from samx.formats.tensorrt.plan import PLAN_FILE, PLAN_ROLE, BuildPlan
from samx.models.shape_range import ShapeRange

POINTS, PROMPTS = ShapeRange(1, 2, 16), ShapeRange(1, 8, 64)
FLOAT = {"fp32": "fp32", "fp16": "fp16", "int8": "fp16"}  # what is not in integers


def export(job: ExportJob, directory: Path) -> Exported:
    """Write the typed graph and its plan into a directory.

    Raises: as write_graphs().
    """
    points, prompts = _sizes(job)
    options = replace(job.options, points=points, prompts=prompts, precision=FLOAT[job.options.precision])
    # Low-rank norms cancel large sums, which float16 does not survive; a GPU has no need of it.
    exported = write_graphs(replace(job, options=options), directory, low_rank=False, padded_points=True)
    write_plan(job, directory)
    files = {**exported.files, PLAN_FILE: PLAN_ROLE, SCRIPT_FILE: SCRIPT_ROLE}
    chosen = {**exported.options, "precision": job.options.precision}
    return replace(exported, files=files, options=chosen, most_points=points.max)


def write_plan(job: ExportJob, directory: Path) -> None:
    """Write how the graph that lies in a directory is to be built, and a script that repeats it."""
    points, prompts = _sizes(job)
    sha256 = hashlib.sha256((directory / DECODER_FILE).read_bytes()).hexdigest()
    plan = BuildPlan.of(job.target, job.spec, DECODER_FILE, sha256, prompts, points, job.options.turing)
    (directory / PLAN_FILE).write_bytes(plan.to_bytes())
    (directory / SCRIPT_FILE).write_text(reproduce_script(plan, job.spec.image_size), encoding="utf-8")


def _sizes(job: ExportJob) -> tuple[ShapeRange, ShapeRange]:
    return job.options.points or POINTS, job.options.prompts or PROMPTS
