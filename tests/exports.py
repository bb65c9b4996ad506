"""Exports of toy decoders, as the command makes them: a job from options by name, written by the target's exporter."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from samx.demo import demo_checkpoint
from samx.demo.model import load_demo
from samx.exporters.base import Exported, ExportJob, export_decoder
from samx.exporters.onnx import write_onnx
from samx.models.checkpoint import LoadedDecoder
from samx.models.graph import Graph
from samx.models.spec import DecoderSpec, TensorSpec
from samx.registry import backend, load


def job_for(
    target: str, loaded: LoadedDecoder, spec: DecoderSpec, precision: str = "fp32", **options: Any
) -> ExportJob:
    """Make a job; options are those that the target declares."""
    entry = backend(target)
    entry.check_options(options)
    return ExportJob(loaded, spec, load(entry.options).read(options), precision, target)


def export_job(job: ExportJob, directory: Path) -> Exported:
    """Write a job's decoder with its target's exporter."""
    return export_decoder(importlib.import_module(backend(job.target).exporter), job, directory)


def with_options(job: ExportJob, **changes: Any) -> ExportJob:
    """Change options of a job."""
    return replace(job, options=replace(job.options, **changes))


def float_encoder(folder: Path, image_size: int = 1024) -> Path:
    """Write SAM 1's demo encoder as people write theirs, and as samx 0.1.0 did: it takes floats, RGB from 0 to 1."""
    model = load_demo("sam1", demo_checkpoint("sam1"), image_size // 16)
    picture = TensorSpec("picture", (1, 3, image_size, image_size), "1", "RGB from 0 to 1, in the decoder's frame")
    graph = Graph("encoder", model.encoder, (picture,), model.spec.image_inputs, allows=frozenset({"Resize"}))
    write_onnx([graph], folder, simplify=False)
    return folder / "encoder.onnx"
