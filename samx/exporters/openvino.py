"""Export to OpenVINO IR, from the same graph that ONNX Runtime gets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from samx.errors import SamxError
from samx.exporters.graphs import usual_sizes
from samx.exporters.onnx import write_graphs
from samx.exporters.options import Exported, ExportJob
from samx.extras import require
from samx.formats.openvino import ir
from samx.formats.openvino.compiled import check_processor
from samx.formats.openvino.rules import broken_rules
from samx.models.shape_range import ShapeRange

USUAL_POINTS = ShapeRange(1, 3, 8)  # a click, two, or a box, padding counted: see samx.runtimes.openvino
HALVES = ("fp16", "bf16")
FLOAT = "fp32"  # what the ONNX graphs are written in
# Without dependent factors their number is odd, and bfloat16 products want even ones: OpenVINO 2026.4 takes a tenth
# longer, a third with factors turned over too, and in graphs of any shape is six times as far off for eight tokens.
FLOAT_GRAPHS: Mapping[str, bool] = {"low_rank": True, "padded_points": False, "independent": False}


def export(job: ExportJob, directory: Path) -> Exported:
    """Write the decoder for OpenVINO; for int8 the ONNX files that samx.quantization.openvino makes it from.

    Raises: as samx.exporters.onnx.write_graphs() and convert(); UnavailableError for bfloat16 where there is none.
    """
    precision = job.options.precision
    check_processor(_openvino().Core(), precision)
    options = usual_sizes(replace(job.options, points=job.options.points or USUAL_POINTS, precision=FLOAT))
    plain = replace(job, options=options)
    if precision == "int8":  # low-rank norms cancel large sums, which rounded factors do not survive
        exported = write_graphs(plain, directory, low_rank=False, padded_points=False)
        return replace(exported, options={**exported.options, "precision": precision})
    with tempfile.TemporaryDirectory(prefix="samx-openvino-") as folder:
        exported = write_graphs(plain, Path(folder), **FLOAT_GRAPHS)
        models = {name: Path(folder, name).read_bytes() for name in exported.files}
    return convert(exported, models, directory, precision)


def convert(exported: Exported, models: Mapping[str, bytes], directory: Path, precision: str) -> Exported:
    """Write IR files for ONNX files.

    Raises: SamxError when a graph breaks a rule.
    """
    files: dict[str, str] = {}
    for name, model in models.items():
        role = exported.files[name]
        written = _write(model, role, precision)
        for file, (content, file_role) in written.files(role).items():
            (directory / file).write_bytes(content)
            files[file] = file_role
    options = {**exported.options, "precision": precision}
    return replace(
        exported, files=files, options=options, tools={**exported.tools, "openvino": _openvino().get_version()}
    )


def _write(model: bytes, role: str, precision: str) -> ir.Ir:
    graph, is_bfloat16 = ir.convert(model), precision == "bf16"
    if is_bfloat16:
        graph = ir.keep_in_bfloat16(graph, role)
    broken = broken_rules(graph, model, role, half_state=is_bfloat16)
    if broken:
        raise SamxError(f"{role}{ir.GRAPH_SUFFIX} breaks the rules: {'; '.join(broken)}", fix="Please report this.")
    written = ir.write(graph, half=False)
    if precision in HALVES:
        written = ir.keep_in_float32(written, ir.angles(graph))
    return ir.write(ir.read(written), half=True) if precision == "fp16" else written


def _openvino() -> ModuleType:
    return require("openvino", "openvino", "the OpenVINO export")
