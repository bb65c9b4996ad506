"""INT8 for OpenVINO: quantised as for ONNX Runtime, whose Q and DQ its plugin turns into integer products too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from samx.exporters.openvino import convert
from samx.formats import openvino as ir
from samx.models.shape_range import ShapeRange
from samx.quantization import onnx
from samx.quantization.search import QuantisationJob, Quantised
from samx.runtimes.openvino import open_graphs

PRECISION = "int8"


def quantise(job: QuantisationJob) -> Quantised:
    """Quantise the exporter's ONNX files, and leave OpenVINO files in their place.

    The search judges in ONNX Runtime, which computes the same integers; the verdict is on the OpenVINO graph.
    Raises: as samx.quantization.onnx.quantise().
    """
    done = onnx.quantise(job)
    models = {name: (job.directory / name).read_bytes() for name in done.exported.files}
    exported = convert(done.exported, models, job.directory, PRECISION)
    for name in models:
        (job.directory / name).unlink()
    counted = {name: count for name, count in done.arithmetic.items() if name != "operators"}
    return replace(done, exported=exported, arithmetic={**counted, "products": _products(job)})


def _products(job: QuantisationJob) -> dict[str, Any]:
    """Count the products of the compiled graphs in each arithmetic, on this machine."""
    graphs = [ir.from_directory(job.directory, role) for role in job.exported.files.values()]
    points = ShapeRange.from_json(job.exported.options["points"], "points").opt
    session = open_graphs(graphs, job.export.spec, PRECISION, points)
    found: dict[str, Any] = session.placement().details["products"]
    return found
