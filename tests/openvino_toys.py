"""Toy decoders as OpenVINO files, each traced once for all tests, and sealed as artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from toys import toy_checkpoint

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.exporters.graphs import usual_sizes
from samx.exporters.onnx import write_graphs
from samx.exporters.openvino import FLOAT_GRAPHS, USUAL_POINTS, convert
from samx.exporters.options import Exported, ExportJob, ExportOptions
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec

CHECKPOINT = CheckpointEntry("toy.pth", "sam1", "0" * 64, 3)
# One graph; two graphs in the form with the most tables; everything that SAM 2 and mask prompts add.
SPECS: Mapping[str, DecoderSpec] = {
    "whole": sam1_spec(image_size=128),
    "split": sam1_spec(image_size=128),
    "sam2": sam2_spec(image_size=128, mask_input=True),
}
SPLIT = ("split", "sam2")
BFLOAT16 = "BF16"  # what OpenVINO calls it among a processor's capabilities


@cache
def onnx_files(kind: str) -> tuple[Exported, dict[str, bytes]]:
    """Trace a toy decoder; gives its ONNX files."""
    spec = SPECS[kind]
    job = ExportJob(
        toy_checkpoint(replace(spec, mask_input=False)),
        spec,
        usual_sizes(options(kind, points=USUAL_POINTS)),
        "openvino",
    )
    with tempfile.TemporaryDirectory() as folder:
        exported = write_graphs(job, Path(folder), **FLOAT_GRAPHS)
        return exported, {name: (Path(folder) / name).read_bytes() for name in exported.files}


def options(kind: str, **more: Any) -> ExportOptions:
    """Ask for a kind of files."""
    return ExportOptions(split=kind in SPLIT, **more)


def exported(kind: str, directory: Path, precision: str = "fp32") -> Exported:
    """Write OpenVINO files as samx does."""
    found, models = onnx_files(kind)
    return convert(found, models, directory, precision)


def artifact(kind: str, path: Path, precision: str = "fp32") -> Artifact:
    """Seal OpenVINO files."""
    with staging(path, overwrite=False) as directory:
        found = exported(kind, directory, precision)
        manifest = Manifest("openvino", precision, SPECS[kind], CHECKPOINT, found.options, found.tools)
        seal(directory, manifest, found.files)
    return Artifact.open(path)


def capabilities() -> list[str]:
    """Ask what this processor can do."""
    from samx.extras import require

    found: list[str] = require("openvino", "openvino", "tests").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return list(found)
