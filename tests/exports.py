"""Exports of toy decoders, as the command makes them: a job from options by name, written by the target's exporter."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from samx.exporters.base import Exported, ExportJob, export_decoder
from samx.models.checkpoint import LoadedDecoder
from samx.models.spec import DecoderSpec
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
