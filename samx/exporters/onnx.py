"""Write graphs as ONNX files through torch.export."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from samx.artifacts.manifest import ENCODER_ROLE
from samx.contracts.adapt import write_client
from samx.contracts.encoder import adapted_encoder, positional_encoding, write_companions
from samx.contracts.table import CLIENT_ENCODER_ROLE, CLIENT_FOLDER, CONTRACTS, Contract
from samx.contracts.table import find as find_contract
from samx.errors import SamxError, UsageError
from samx.exporters.base import Exported, ExportJob, HalfOptions, option
from samx.exporters.compact import made_of_weights
from samx.extras import require, silent
from samx.formats.onnx import broken_rules
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from samx.models.graph import Graph, Graphs

OPSETS = (18, 23)
DEFAULT_OPSET = 18  # every backend reads it; 23 adds Attention and Gelu as operators
ATTENTION_OPSET = 23  # first opset with the Attention operator
IR_VERSIONS = {18: 9, 23: 11}  # of the ONNX release that introduced the opset, so that runtimes of its time read it
METADATA_PREFIX = "samx."
MOST_INSIDE_BYTES = 1_900_000_000  # of weights in a graph's own file; protobuf ends at 2 GiB
LEAST_OUTSIDE_BYTES = 1024  # of a tensor beside it: constants of shapes stay where shape inference finds them

POSITION_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"  # among a decoder's weights
DECODER_FILE = "decoder.onnx"  # of one graph; of two: image.onnx and prompt.onnx


def opset_option() -> int:
    """Declare the opset, for every target that is given ONNX files."""
    return option(DEFAULT_OPSET, f"ONNX opset: {DEFAULT_OPSET} (every backend) or {ATTENTION_OPSET} (Attention).")


def simplify_option() -> bool:
    """Declare whether onnxsim is run."""
    return option(True, "Run onnxsim (default).", flag="--simplify/--no-simplify")


@dataclass(frozen=True)
class OnnxOptions(HalfOptions):
    """Declare the options of ONNX Runtime's files."""

    opset: int = opset_option()
    split: bool = option(False, "An image graph and a prompt graph.")
    simplify: bool = simplify_option()
    compact: bool = option(False, "Smaller files: what follows from the weights is made when a graph is loaded.")
    contract: str | None = option(
        None, f"A graph for other programs too: {', '.join(CONTRACTS)}; see docs/contracts.md."
    )

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse an opset that samx does not write, and what a choice of precision or a contract has no room for."""
        super().check(precision, spec)
        check_opset(self.opset)
        if self.compact and precision != "fp32":
            what, expected = "a compact export is in single precision", "fp32"
            raise UsageError(what, found=f"--{precision}", expected=expected, fix="Leave --compact out.")
        if self.contract is None:
            return
        find_contract(self.contract)
        for found, is_wrong in (("--split", self.split), (f"--{precision}", precision != "fp32")):
            if is_wrong:
                what, expected = f"contract '{self.contract}' does not fit", "one graph in fp32"
                raise UsageError(what, found=found, expected=expected, fix="Leave it out, or --contract.")

    def exported(self, spec: DecoderSpec) -> DecoderSpec:
        """Return the decoder that a contract's graph is written around."""
        return spec if self.contract is None else find_contract(self.contract).native(spec)


def check_opset(opset: int) -> None:
    """Refuse an opset that samx does not write.

    Raises: UsageError.
    """
    if opset not in OPSETS:
        raise UsageError("opset is not offered", found=opset, expected=" or ".join(map(str, OPSETS)))


def decoder(job: ExportJob) -> Graphs:
    """Build the decoder's graphs for ONNX Runtime."""
    from samx.models.fast.graphs import USUAL_POINTS, USUAL_PROMPTS, Needs, fast_graphs

    options: OnnxOptions = job.options
    needs = Needs(
        options.points or USUAL_POINTS, options.prompts or USUAL_PROMPTS, options.split,
        low_rank=job.precision == "fp32",  # its norms cancel large sums, which float16 does not survive
        fused=options.opset >= ATTENTION_OPSET, keep_fp32=options.kept(job.precision),
    )  # fmt: skip
    return fast_graphs(job.loaded, job.spec, needs)


def write(graphs: Sequence[Graph], job: ExportJob, directory: Path) -> Exported:
    """Write graphs into a directory, a file each; and the one of a contract around them.

    Raises: as write_onnx().
    """
    options: OnnxOptions = job.options
    exported = write_onnx(graphs, directory, opset=options.opset, simplify=options.simplify)
    if options.compact:
        make_compact(exported.files, graphs, job, directory)
    if options.contract is None:
        return exported
    client = write_client(directory / DECODER_FILE, find_contract(options.contract), job.spec, directory)
    return replace(exported, files={**exported.files, **client})


def make_compact(files: Mapping[str, str], graphs: Sequence[Graph], job: ExportJob, directory: Path) -> None:
    """Write a decoder's files again, smaller: with the checkpoint's weights, and what makes the constants of them."""
    onnx = require("onnx", "export", "ONNX export")
    models = [onnx.load(str(directory / file)) for file in files]
    made_of_weights(models, _makers(graphs[0], job))
    for (file, role), model in zip(files.items(), models, strict=True):
        save(model, directory / file, role)
        onnx.checker.check_model(str(directory / file), full_check=True)


def _makers(graph: Graph, job: ExportJob) -> onnx.ModelProto:
    """Write what makes the constants of a decoder's transformer, under the names that they have in its graphs."""
    from samx.models.fast.constants import TransformerConstants

    constants = TransformerConstants(cast(Any, graph.module).decoder, job.loaded)
    names = [f"decoder.transformer.{name}" for name in constants.names]
    makers = to_onnx(constants, (), opset=job.options.opset, inputs=[], outputs=names, optimize=False)
    _drop_traces(makers)
    return makers


def write_onnx(graphs: Sequence[Graph], directory: Path, *, opset: int = DEFAULT_OPSET, simplify: bool) -> Exported:
    """Write graphs as ONNX files, named after their roles.

    Raises: SamxError when a graph breaks a rule; MissingExtraError.
    """
    onnx = require("onnx", "export", "ONNX export")
    files: dict[str, str] = {}
    for graph in graphs:
        model, file = _traced(graph, opset), f"{graph.role}.onnx"
        model = _simplified(model) if simplify else model
        _finish(model, graph, opset)
        files |= save(model, directory / file, graph.role)
        onnx.checker.check_model(str(directory / file), full_check=True)
    names = ["torch", "onnx", "onnxscript", *(["onnxsim"] if simplify else [])]
    return Exported(files, {"opset": opset, "simplify": simplify}, {name: version(name) for name in names})


def write_encoder(graph: Graph, job: ExportJob, directory: Path) -> Exported:
    """Write the graph of an image encoder. onnxsim would take minutes for it, and finds nothing.

    Where there is a contract, it is written in its programs' signature too, with what they read beside it.
    Raises: UsageError for several pictures a call, which no program sends; as write_onnx().
    """
    from samx.models.encoders.precision import in_half

    contract = getattr(job.options, "contract", None)  # of another target, which has this one write its encoder: none
    pictures = graph.inputs[0].shape[0]
    if contract is not None and pictures != 1:
        what, expected = f"contract '{contract}' does not fit", "one picture a call"
        raise UsageError(what, found=f"--pictures: {pictures}", expected=expected, fix="Leave it out.")
    exported = write_onnx([in_half(graph) if job.precision == "fp16" else graph], directory, simplify=False)
    if contract is None:
        return exported
    files, notes = _client_encoder(find_contract(contract), graph, job, directory)
    return replace(exported, files={**exported.files, **files}, notes=notes)


def _client_encoder(
    contract: Contract, graph: Graph, job: ExportJob, directory: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write an image encoder for a contract's programs; return the files with their roles, and why there is none."""
    size_px = graph.inputs[0].shape[1]
    if size_px != job.spec.image_size:
        return {}, (f"{CLIENT_FOLDER}/ has no image encoder: it takes pictures of {size_px} px.",)
    onnx, path = require("onnx", "export", "ONNX export"), directory / CLIENT_FOLDER / contract.encoder.file
    positions = positional_encoding(job.loaded.weights[POSITION_MATRIX].numpy(), job.spec.grid)
    encoder = adapted_encoder(onnx.load(str(directory / f"{graph.role}.onnx")), contract, job.spec, positions)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = save(encoder, path, CLIENT_ENCODER_ROLE)
    onnx.checker.check_model(str(path), full_check=True)
    folder = path.parent.relative_to(directory).as_posix()
    return {
        **{f"{folder}/{name}": role for name, role in saved.items()},
        **write_companions(contract, job.spec, Path(job.loaded.name).stem, directory),
    }, ()  # fmt: skip


def place_encoder(source: Path, directory: Path, precision: str) -> Exported:
    """Place an image encoder's ONNX file as this target runs it: as it is, with the weights beside it."""
    roles = {source.name: ENCODER_ROLE, f"{source.name}.data": f"{ENCODER_ROLE}_weights"}
    files = {name: role for name, role in roles.items() if source.with_name(name).exists()}
    for name in files:
        shutil.copyfile(source.with_name(name), directory / name)
    return Exported(files, {}, {})


def save(model: onnx.ModelProto, path: Path, role: str) -> dict[str, str]:
    """Write a graph, and weights that are too large for it beside it; return the files' roles."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= MOST_INSIDE_BYTES:
        path.write_bytes(model.SerializeToString())
        return {path.name: role}
    onnx = require("onnx", "export", "ONNX export")
    beside = f"{path.name}.data"
    onnx.save_model(model, path, save_as_external_data=True, location=beside, size_threshold=LEAST_OUTSIDE_BYTES)
    return {path.name: role, beside: f"{role}_weights"}


def _traced(graph: Graph, opset: int) -> onnx.ModelProto:
    from samx.models.graph import dynamic_shapes, examples

    axes = dynamic_shapes(graph.inputs)
    return to_onnx(
        graph.module, examples(graph.inputs), opset=opset, dynamic_shapes=(axes,) if any(axes) else None,
        inputs=[spec.name for spec in graph.inputs], outputs=[spec.name for spec in graph.outputs],
    )  # fmt: skip


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    simplified, equal = require("onnxsim", "export", "graph simplification").simplify(model)
    if not equal:
        raise SamxError("onnxsim changed what the graph computes", fix="Export with --no-simplify and report this.")
    return simplified


def _finish(model: onnx.ModelProto, graph: Graph, opset: int) -> None:
    """Check the rules of graphs, add the notes for clients."""
    model.ir_version = IR_VERSIONS[opset]
    broken = broken_rules(model, opset, graph.inputs, graph.outputs, graph.allows)
    if broken:
        raise SamxError(
            f"{graph.role}.onnx breaks the rules of the graph: {'; '.join(broken)}", fix="Please report this."
        )
    _drop_traces(model)
    model.producer_name = "samx"
    for key, value in stored_notes(graph.notes).items():
        model.metadata_props.add(key=key, value=value)


def _drop_traces(model: onnx.ModelProto) -> None:
    """Drop what tells of this machine."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (model, model.graph, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]


def stored_notes(notes: Mapping[str, Any]) -> dict[str, str]:
    """Return notes for clients as files hold them: text under names of samx's own."""
    return {METADATA_PREFIX + key: json.dumps(value, sort_keys=True) for key, value in notes.items()}


def to_onnx(
    module: nn.Module, examples: tuple[Tensor, ...], *, opset: int, inputs: Sequence[str], outputs: Sequence[str],
    dynamic_shapes: Any = None, optimize: bool = True,
) -> onnx.ModelProto:  # fmt: skip
    """Trace a module and convert it."""
    import torch

    with silent("torch.onnx"), contextlib.redirect_stdout(None), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), examples, dynamo=True, verbose=False, opset_version=opset, dynamic_shapes=dynamic_shapes,
            input_names=list(inputs), output_names=list(outputs), optimize=optimize,
        )  # fmt: skip
    assert program is not None  # None is only returned when a file is written
    return program.model_proto
