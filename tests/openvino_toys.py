"""Toy decoders as OpenVINO files, each traced once for all tests, and sealed as artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from exports import job_for
from toys import toy_checkpoint

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.exporters import openvino
from samx.exporters.base import Exported, ExportJob
from samx.exporters.onnx import write_onnx
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
    graphs = openvino.decoder(job(kind))
    with tempfile.TemporaryDirectory() as folder:
        written = write_onnx(graphs.graphs, Path(folder), simplify=True)
        models = {name: (Path(folder) / name).read_bytes() for name in written.files}
        return replace(written, options={**graphs.facts, **written.options}), models


def job(kind: str, precision: str = "fp32", **more: Any) -> ExportJob:
    """Ask for a kind of files."""
    loaded = toy_checkpoint(replace(SPECS[kind], mask_input=False))
    return job_for("openvino", loaded, SPECS[kind], precision, split=kind in SPLIT, **more)


def exported(kind: str, directory: Path, precision: str = "fp32") -> Exported:
    """Write OpenVINO files as samx does."""
    found, models = onnx_files(kind)
    return openvino.convert(found, models, directory, precision)


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
