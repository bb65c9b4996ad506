"""Write graphs as ONNX files; in toy16 with weights of half precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samx.errors import UsageError
from samx.exporters.base import Exported, ExportJob, ExportOptions, option
from samx.exporters.onnx import write_onnx
from samx.extras import require
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    from samx.models.graph import Graph, Graphs

LOUDEST = 11


@dataclass(frozen=True)
class ToyOptions(ExportOptions):
    """Declare the toy's options."""

    loudness: int = option(1, f"How loud the toy is, up to {LOUDEST}.")

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse what hurts the ears."""
        if self.loudness > LOUDEST:
            found, expected = f"--loudness {self.loudness}", f"at most {LOUDEST}"
            raise UsageError("the toy is not that loud", found=found, expected=expected)


def decoder(job: ExportJob) -> Graphs:
    """Build the decoder's graph."""
    from samx.models.fast.graphs import USUAL_POINTS, USUAL_PROMPTS, Needs, fast_graphs

    options = job.options
    needs = Needs(options.points or USUAL_POINTS, options.prompts or USUAL_PROMPTS, low_rank=job.precision != "int8")
    return fast_graphs(job.loaded, job.spec, needs)


def write(graphs: Sequence[Graph], job: ExportJob, directory: Path) -> Exported:
    """Write the graph into a directory."""
    exported = write_onnx(graphs, directory, simplify=False)
    for name in exported.files if job.precision == "toy16" else ():
        round_weights(directory / name)
    return exported


def round_weights(path: Path) -> None:
    """Round a file's weights to half precision."""
    onnx = require("onnx", "export", "the toy")
    model = onnx.load(str(path))
    for constant in model.graph.initializer:
        value = onnx.numpy_helper.to_array(constant)
        if value.dtype == np.float32:
            rounded = value.astype(np.float16).astype(np.float32)
            constant.CopyFrom(onnx.numpy_helper.from_array(rounded, constant.name))
    onnx.save(model, str(path))
