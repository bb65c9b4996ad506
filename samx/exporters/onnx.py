"""Export the deploy form to ONNX through torch.export: one graph, or an image graph and a prompt graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from samx.decoders.checkpoint import build_reference
from samx.decoders.deploy.decoder import CACHE_FROM_PROMPTS, DeployDecoder, choose_form
from samx.decoders.deploy.precision import ISLANDS, set_precision
from samx.decoders.spec import LABELS, DecoderSpec, TensorSpec
from samx.errors import SamxError, UsageError
from samx.exporters.graph_rules import broken_rules
from samx.exporters.job import OPSETS, Exported, ExportJob, ExportOptions
from samx.exporters.tracing import to_onnx
from samx.extras import require
from samx.spans import Span

if TYPE_CHECKING:
    import onnx

USUAL_POINTS, USUAL_PROMPTS = Span(1, 8, 8), Span(1, 1, 64)  # any number works; the form is chosen for the second
ATTENTION_OPSET = 23  # first opset with the Attention operator
# torch.export specialises on sizes 0 and 1, and takes equal sizes for related ones: examples avoid both, and every
# size that the decoder has of its own, so that a test sees an example's size if it is baked in.
EXAMPLE_SIZES = {"prompts": 13, "points": 7}
IR_VERSIONS = {18: 9, 23: 11}  # of the ONNX release that introduced the opset, so that runtimes of its time read it
METADATA_PREFIX = "samx."

DECODER_FILE, IMAGE_FILE, PROMPT_FILE = "decoder.onnx", "image.onnx", "prompt.onnx"


@dataclass(frozen=True)
class Graph:
    """Pair a module with the names and shapes at its border."""

    file: str
    role: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


class WholeGraph(nn.Module):
    """Take image and prompts, give masks."""

    def __init__(self, decoder: DeployDecoder) -> None:
        super().__init__()
        self.decoder, self.images = decoder, len(decoder.spec.image_inputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.decoder.decode(self.decoder.image_state(*inputs[: self.images]), *inputs[self.images :])


class ImageGraph(nn.Module):
    """Take an image, give what every prompt on it shares."""

    def __init__(self, decoder: DeployDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.decoder.image_state(*inputs).values())


class PromptGraph(nn.Module):
    """Take the image graph's outputs and prompts, give masks."""

    def __init__(self, decoder: DeployDecoder, names: Sequence[str]) -> None:
        super().__init__()
        self.decoder, self.names = decoder, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, inputs, strict=False))
        return self.decoder.decode(state, *inputs[len(self.names) :])


def export(job: ExportJob, directory: Path) -> Exported:
    """Write the decoder for ONNX Runtime.

    Raises: as write_graphs().
    """
    low_rank = job.options.precision != "int8"  # its norms cancel large sums, which rounded factors do not survive
    options = replace(
        job.options, points=job.options.points or USUAL_POINTS, prompts=job.options.prompts or USUAL_PROMPTS
    )
    return write_graphs(replace(job, options=options), directory, low_rank=low_rank, slots=False)


def write_graphs(job: ExportJob, directory: Path, *, low_rank: bool, slots: bool) -> Exported:
    """Write the decoder's ONNX files into a directory.

    With `low_rank` that form may be chosen; with `slots` the graph knows empty points.
    Raises: UsageError for an opset that samx does not write; SamxError when a graph breaks a rule of the deploy form.
    """
    options = job.options
    if options.islands and options.precision != "fp16":
        raise UsageError("everything is in float32 already", found=f"precision {options.precision}", expected="--fp16")
    if options.opset not in OPSETS:
        raise UsageError("opset is not offered", found=options.opset, expected=" or ".join(map(str, OPSETS)))
    onnx = require("onnx", "export", "ONNX export")
    decoder = _decoder(job, low_rank, slots)
    files = {}
    for graph in _graphs(decoder, options.split):
        model = _write(graph, options)
        _finish(model, graph, job.spec, options)
        (directory / graph.file).write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(directory / graph.file), full_check=True)
        files[graph.file] = graph.role
    return Exported(files, {**options.to_json(), **_facts(decoder, options)}, _tools(options))


def _decoder(job: ExportJob, low_rank: bool, slots: bool) -> DeployDecoder:
    options = job.options
    assert options.points is not None and options.prompts is not None  # noqa: PT018 - every exporter fills them in
    cached = options.split or options.prompts.opt >= CACHE_FROM_PROMPTS
    form = choose_form(job.spec, options.points.opt, low_rank and cached)
    reference = build_reference(replace(job.loaded, spec=job.spec))
    fused = options.opset >= ATTENTION_OPSET
    decoder = DeployDecoder(reference, form, fused=fused, cached=cached, slots=slots)
    return set_precision(decoder, ISLANDS | set(options.islands)) if options.precision == "fp16" else decoder


def _facts(decoder: DeployDecoder, options: ExportOptions) -> dict[str, Any]:
    spec = decoder.spec
    assert options.points is not None
    tokens = spec.output_tokens + options.points.opt
    columns = f"{spec.heads} heads x {tokens} tokens = {spec.heads * tokens} columns"
    kept = "kept between prompts" if decoder.cached else "computed anew in every call"
    widths = f"projections of {spec.cross_attention_width} and cells of {spec.width} channels"
    reason = f"{columns} against {widths}; the image's part is {kept}"
    form = {"form": decoder.form, "form_reason": reason, "cached": decoder.cached, "slots": decoder.slots}
    return form if decoder.stream is None else {**form, "islands": sorted(ISLANDS | set(options.islands))}


def _tools(options: ExportOptions) -> dict[str, str]:
    names = ["torch", "onnx", "onnxscript", *(["onnxsim"] if options.simplify else [])]
    return {name: version(name) for name in names}


def _graphs(decoder: DeployDecoder, split: bool) -> list[Graph]:
    spec = decoder.spec
    outputs = tuple(tensor.name for tensor in spec.outputs)
    if not split:
        return [Graph(DECODER_FILE, "decoder", WholeGraph(decoder), spec.inputs, outputs)]
    state = _state_specs(decoder)
    names = tuple(tensor.name for tensor in state)
    return [
        Graph(IMAGE_FILE, "image", ImageGraph(decoder), spec.image_inputs, names),
        Graph(PROMPT_FILE, "prompt", PromptGraph(decoder, names), state + spec.prompt_inputs, outputs),
    ]


def _state_specs(decoder: DeployDecoder) -> tuple[TensorSpec, ...]:
    with torch.no_grad():
        state = decoder.image_state(*_examples(decoder.spec.image_inputs))
    return tuple(TensorSpec(name, tuple(kept.shape), "1", "kept between prompts") for name, kept in state.items())


def _examples(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Make inputs of the right shapes; their values leave no trace in the graph, which the gate proves."""
    sizes = [[EXAMPLE_SIZES[d] if isinstance(d, str) else d for d in spec.shape] for spec in specs]
    return tuple(torch.full(size, 0.5) for size in sizes)


def _write(graph: Graph, options: ExportOptions) -> onnx.ModelProto:
    """Trace and convert one module."""
    dims = {name: torch.export.Dim(name) for name in EXAMPLE_SIZES}
    shapes = [{i: dims[d] for i, d in enumerate(spec.shape) if isinstance(d, str)} or None for spec in graph.inputs]
    model = to_onnx(
        graph.module, _examples(graph.inputs), opset=options.opset, dynamic_shapes=(tuple(shapes),),
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
    """Check the graph against the deploy form's rules, drop traces of this machine, add the metadata."""
    model.ir_version = IR_VERSIONS[options.opset]
    broken = broken_rules(model, options.opset, graph.inputs, graph.outputs)
    if broken:
        raise SamxError(f"{graph.file} breaks the rules of the graph: {'; '.join(broken)}", fix="Please report this.")
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
    keeps_aspect = spec.family == "sam1"
    return {
        "role": role,
        "spec": spec.to_json(),
        "inputs": [asdict(tensor) for tensor in spec.inputs],
        "outputs": [asdict(tensor) for tensor in spec.outputs],
        "labels": dict(LABELS),
        "preprocessing": {
            "image_size_px": spec.image_size,
            "resize": "longest side, then zeros right and below" if keeps_aspect else "both sides",
            "point_offset_px": "0.5 is added inside the graph",
            "box": "two points with labels 2 and 3, " + ("after the points" if keeps_aspect else "before the points"),
            "padding": "one point (0, 0) with label -1 after the points"
            + ("; none beside a box" if keeps_aspect else " or the box"),
        },
        "thresholds": {
            "mask": spec.mask_threshold,
            "stability": spec.stability_threshold,
            "stability_delta": spec.stability_delta,
        },
    }
