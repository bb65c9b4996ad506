"""Export the fast form to ONNX through torch.export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.errors import SamxError, UsageError
from samx.exporters.graphs import Graph, dynamic_shapes, examples, facts, fast_decoder, graphs, usual_sizes
from samx.exporters.options import OPSETS, Exported, ExportJob, ExportOptions
from samx.exporters.tracing import to_onnx
from samx.extras import require
from samx.formats.onnx import broken_rules
from samx.models.spec import LABELS, DecoderSpec

if TYPE_CHECKING:
    import onnx

IR_VERSIONS = {18: 9, 23: 11}  # of the ONNX release that introduced the opset, so that runtimes of its time read it
METADATA_PREFIX = "samx."

DECODER_FILE = "decoder.onnx"  # of one graph; of two: image.onnx and prompt.onnx


def export(job: ExportJob, directory: Path) -> Exported:
    """Write the decoder for ONNX Runtime.

    Raises: as write_graphs().
    """
    low_rank = job.options.precision != "int8"  # its norms cancel large sums, which rounded factors do not survive
    return write_graphs(
        replace(job, options=usual_sizes(job.options)), directory, low_rank=low_rank, padded_points=False
    )


def write_graphs(
    job: ExportJob, directory: Path, *, low_rank: bool, padded_points: bool, independent: bool = True
) -> Exported:
    """Write the decoder's ONNX files into a directory.

    With `low_rank` that form may be chosen, with `independent` without the factors that follow from others; with
    `padded_points` the graph knows points labelled PADDED_POINT.
    Raises: UsageError for an opset that samx does not write and as fast_decoder(); SamxError when a graph breaks a
    rule of the fast form.
    """
    options = job.options
    if options.opset not in OPSETS:
        raise UsageError("opset is not offered", found=options.opset, expected=" or ".join(map(str, OPSETS)))
    onnx = require("onnx", "export", "ONNX export")
    decoder = fast_decoder(job, low_rank=low_rank, padded_points=padded_points, independent=independent)
    files = {}
    for graph in graphs(decoder, options.split):
        model, file = _write(graph, options), f"{graph.role}.onnx"
        _finish(model, graph, job.spec, options)
        (directory / file).write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(directory / file), full_check=True)
        files[file] = graph.role
    return Exported(files, {**options.to_json(), **facts(decoder, options)}, _tools(options))


def _tools(options: ExportOptions) -> dict[str, str]:
    names = ["torch", "onnx", "onnxscript", *(["onnxsim"] if options.simplify else [])]
    return {name: version(name) for name in names}


def _write(graph: Graph, options: ExportOptions) -> onnx.ModelProto:
    """Trace and convert one module."""
    model = to_onnx(
        graph.module, examples(graph.inputs), opset=options.opset, dynamic_shapes=(dynamic_shapes(graph.inputs),),
        inputs=[spec.name for spec in graph.inputs], outputs=graph.outputs,
    )  # fmt: skip
    return _simplified(model) if options.simplify else model


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    simplified, equal = require("onnxsim", "export", "graph simplification").simplify(model)
    if not equal:
        raise SamxError("onnxsim changed what the graph computes", fix="Export with --no-simplify and report this.")
    result: onnx.ModelProto = simplified
    return result


def _finish(model: onnx.ModelProto, graph: Graph, spec: DecoderSpec, options: ExportOptions) -> None:
    """Check the graph against the fast form's rules, drop traces of this machine, add the metadata."""
    model.ir_version = IR_VERSIONS[options.opset]
    broken = broken_rules(model, options.opset, graph.inputs, graph.outputs)
    if broken:
        raise SamxError(
            f"{graph.role}.onnx breaks the rules of the graph: {'; '.join(broken)}", fix="Please report this."
        )
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (model, model.graph, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    model.producer_name = "samx"
    for key, value in metadata(spec, graph.role).items():
        model.metadata_props.add(key=METADATA_PREFIX + key, value=json.dumps(value, sort_keys=True))


def metadata(spec: DecoderSpec, role: str) -> Mapping[str, Any]:
    """Say inside the model what a client needs to use it: spec, preprocessing, labels, thresholds."""
    rules = spec.rules
    return {
        "role": role,
        "spec": spec.to_json(),
        "inputs": [asdict(tensor) for tensor in spec.inputs],
        "outputs": [asdict(tensor) for tensor in spec.outputs],
        "labels": dict(LABELS),
        "preprocessing": {
            "image_size_px": spec.image_size,
            "resize": "longest side, then zeros right and below" if rules.keeps_aspect else "both sides",
            "point_offset_px": f"{rules.point_offset_px} is added inside the graph",
            "box": "two points with labels 2 and 3, "
            + ("before the points" if rules.box_first else "after the points"),
            "padding": "one point (0, 0) with label -1 after the points"
            + (" or the box" if rules.pads_boxes else "; none beside a box"),
        },
        "thresholds": {
            "mask": spec.mask_threshold,
            "stability": spec.stability_threshold,
            "stability_delta": spec.stability_delta,
        },
    }
