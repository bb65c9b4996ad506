"""Write what TensorRT builds from: one ONNX file with its types in it, the build plan, and a script to repeat it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from samx.engines.plan import PLAN_FILE, PLAN_ROLE, BuildPlan
from samx.engines.reproduce import SCRIPT_FILE, SCRIPT_ROLE, reproduce_script
from samx.exporters.job import Exported, ExportJob
from samx.exporters.onnx import DECODER_FILE, write_graphs
from samx.spans import Span

POINTS, PROMPTS = Span(1, 2, 16), Span(1, 8, 64)


def export(job: ExportJob, directory: Path) -> Exported:
    """Write the typed graph and its plan into a directory.

    Raises: as write_graphs().
    """
    options = replace(job.options, points=job.options.points or POINTS, prompts=job.options.prompts or PROMPTS)
    assert options.points is not None and options.prompts is not None  # noqa: PT018 - filled in above
    # Low-rank norms cancel large sums, which float16 does not survive; a GPU has no need of it.
    exported = write_graphs(replace(job, options=options), directory, low_rank=False, slots=True)
    sha256 = hashlib.sha256((directory / DECODER_FILE).read_bytes()).hexdigest()
    plan = BuildPlan.of(job.target, job.spec, DECODER_FILE, sha256, options.prompts, options.points, options.turing)
    (directory / PLAN_FILE).write_bytes(plan.to_bytes())
    (directory / SCRIPT_FILE).write_text(reproduce_script(plan, job.spec.image_size), encoding="utf-8")
    files = {**exported.files, PLAN_FILE: PLAN_ROLE, SCRIPT_FILE: SCRIPT_ROLE}
    return replace(exported, files=files, most_points=options.points.max)
