"""Write graphs as OpenVINO IR, from the same ONNX graphs that ONNX Runtime gets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from samx.artifacts.manifest import ENCODER_ROLE
from samx.errors import SamxError
from samx.exporters.base import Exported, ExportJob, ExportOptions, option
from samx.exporters.onnx import simplify_option, write_onnx
from samx.extras import require
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    from samx.formats import openvino as ir
    from samx.models.graph import Graph, Graphs

USUAL_POINTS = ShapeRange(1, 3, 8)  # a click, two, or a box, padding counted: see samx.runtimes.openvino
HALVES = ("fp16", "bf16")
ENCODER_MAY = frozenset({"Interpolate"})  # in feature pyramids, by whole numbers


@dataclass(frozen=True)
class OpenVinoOptions(ExportOptions):
    """Declare the options of OpenVINO's files."""

    split: bool = option(False, "An image graph and a prompt graph.")
    simplify: bool = simplify_option()

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse bfloat16 where the processor has none.

        Raises: UnavailableError.
        """
        from samx.formats.openvino import check_processor

        check_processor(_openvino().Core(), precision)


def decoder(job: ExportJob) -> Graphs:
    """Build the decoder's graphs, in float32 whatever the precision.

    Without dependent factors their number is odd, and bfloat16 products want even ones: OpenVINO 2026.4 takes a tenth
    longer, a third with factors turned over too, and in graphs of any shape is six times as far off for eight tokens.
    """
    from samx.models.fast.graphs import USUAL_PROMPTS, Needs, fast_graphs

    options: OpenVinoOptions = job.options
    rounded = job.precision == "int8"  # rounded factors do not survive low-rank norms
    points, prompts = options.points or USUAL_POINTS, options.prompts or USUAL_PROMPTS
    needs = Needs(points, prompts, options.split, low_rank=not rounded, independent=rounded)
    return fast_graphs(job.loaded, job.spec, needs)


def write(graphs: Sequence[Graph], job: ExportJob, directory: Path) -> Exported:
    """Write graphs into a directory; for int8 the ONNX files that samx.quantization.openvino makes them from.

    Raises: as write_onnx() and convert().
    """
    if job.precision == "int8":
        return write_onnx(graphs, directory, simplify=job.options.simplify)
    with tempfile.TemporaryDirectory(prefix="samx-openvino-") as folder:
        exported = write_onnx(graphs, Path(folder), simplify=job.options.simplify)
        models = {name: Path(folder, name).read_bytes() for name in exported.files}
    return convert(exported, models, directory, job.precision)


def convert(exported: Exported, models: Mapping[str, bytes], directory: Path, precision: str) -> Exported:
    """Write IR files for ONNX files.

    Raises: SamxError when a graph breaks a rule.
    """
    files: dict[str, str] = {}
    for name, model in models.items():
        role = exported.files[name]
        files |= _saved(_converted(model, role, precision), role, directory)
    return replace(exported, files=files, options={**exported.options, "precision": precision}, tools=_tools(exported))


def write_encoder(graph: Graph, job: ExportJob, directory: Path) -> Exported:
    """Write the graph of an image encoder. In float16 its weights are stored, as a decoder's are.

    Raises: UnavailableError for bfloat16 where the processor has none; as write_onnx() and convert().
    """
    from samx.formats.openvino import check_processor

    check_processor(_openvino().Core(), job.precision)
    with tempfile.TemporaryDirectory(prefix="samx-openvino-") as folder:
        exported = write_onnx([graph], Path(folder), simplify=False)
        files = place_encoder(Path(folder, f"{graph.role}.onnx"), directory, job.precision).files
    return replace(exported, files=files, tools=_tools(exported))


def place_encoder(source: Path, directory: Path, precision: str) -> Exported:
    """Write IR files for an image encoder's ONNX file.

    Raises: SamxError when the graph breaks a rule.
    """
    from samx.formats import openvino as ir

    encoder = ir.convert_encoder(source)
    _refuse(ir.broken_rules(encoder, source.read_bytes(), ENCODER_ROLE, allows=ENCODER_MAY), ENCODER_ROLE)
    files = _saved(ir.write(encoder, half=precision == "fp16"), ENCODER_ROLE, directory)
    return Exported(files, {}, {"openvino": _openvino().get_version()})


def _saved(written: ir.Ir, role: str, directory: Path) -> dict[str, str]:
    """Write a graph's files; return their roles."""
    files = written.files(role)
    for file, (content, _) in files.items():
        (directory / file).write_bytes(content)
    return {file: file_role for file, (_, file_role) in files.items()}


def _tools(exported: Exported) -> dict[str, str]:
    return {**exported.tools, "openvino": _openvino().get_version()}


def _converted(model: bytes, role: str, precision: str) -> ir.Ir:
    from samx.formats import openvino as ir

    graph, is_bfloat16 = ir.convert(model), precision == "bf16"
    if is_bfloat16:
        graph = ir.keep_in_bfloat16(graph, role)
    _refuse(ir.broken_rules(graph, model, role, half_state=is_bfloat16), role)
    written = ir.write(graph, half=False)
    if precision in HALVES:
        written = ir.keep_in_float32(written, ir.angles(graph))
    return ir.write(ir.read(written), half=True) if precision == "fp16" else written


def _refuse(broken: Sequence[str], role: str) -> None:
    if broken:
        raise SamxError(f"{role}.xml breaks the rules: {'; '.join(broken)}", fix="Please report this.")


def _openvino() -> ModuleType:
    return require("openvino", "openvino", "the OpenVINO export")
