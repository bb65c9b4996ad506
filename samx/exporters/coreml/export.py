"""Write Core ML packages for the Neural Engine, a function for every usual number of points, and a Swift example."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from samx.artifacts.manifest import ENCODER_ROLE
from samx.errors import SamxError
from samx.exporters.base import HALF, Exported, ExportJob
from samx.exporters.coreml import ONE_PROMPT, CoreMLOptions, chosen_functions
from samx.exporters.onnx import stored_notes
from samx.formats.coreml.contract import CONTRACTS, MASK_DECODER, PROMPT_ENCODER, Contract, Signature
from samx.formats.coreml.package import DECODER, SINGLE_FUNCTION
from samx.models.shape_range import ShapeRange
from samx.models.spec import PADDED_POINT, DecoderSpec, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from samx.formats.coreml.program import Program
    from samx.models.graph import Graph, Graphs
    from samx.models.reference import ReferenceDecoder


SWIFT_FILE = "SamxDecoder.swift"
SCALARS: Mapping[str, str] = {"fp32": "Float", "fp16": "Float16", "int8": "Float16"}  # of what a package takes
NAMED = "    configuration.functionName = function\n"
PADDING = {False: "a prompt without a box ends with", True: "every prompt ends with"}  # by whether a box is padded
APPLE_PADDING = "the prompt encoder adds itself"
PACKAGE_ROLE, SWIFT_ROLE = "package", "example"
LINT_FILE, LINT_ROLE = "neural_engine_lint.json", "lint"
NOTE = f"Neural Engine, a lint and no measurement ({LINT_FILE}):"


def swift_source(
    spec: DecoderSpec, contract: str, precision: str, functions: Mapping[str, int], features: Sequence[TensorSpec]
) -> str:
    """Write the example for one export; `functions` gives each function's rows as the app counts them."""
    rules = spec.rules
    padding = f"fills every prompt up to {rules.prompt_tokens}" if rules.prompt_tokens else PADDING[rules.pads_boxes]
    padding = APPLE_PADDING if contract == "apple" else padding
    words: dict[str, object] = {
        "about": f"{spec.family}, {precision}, contract {contract}; up to {max(functions.values())} rows a prompt.",
        "size": spec.image_size, "padding": padding, "scalar": SCALARS[precision],
        "label": "Int32" if contract == "apple" else "Float",
        "functions": ", ".join(f'({rows}, "{name}")' for name, rows in sorted(functions.items(), key=lambda f: f[1])),
        "masks": spec.masks_out, "first": int(spec.masks == "all"), "side": spec.mask_size, "empty": PADDED_POINT,
        "scores": "scores" if contract == "apple" else "iou_predictions",
        "features": ", ".join(f"{t.name} {t.dtype} {'x'.join(map(str, t.shape))}" for t in features),
        "named": "" if SINGLE_FUNCTION in functions else NAMED,
    }  # fmt: skip
    words["fill"] = _filled("fill", words)
    words["decode"] = _filled(f"decode_{contract}", words)
    return _filled("decoder", words)


def swift_example(spec: DecoderSpec, contract: Contract, precision: str, functions: Mapping[str, int]) -> str:
    """Write the example of an export for what the app itself hands over: image tensors, points and, if any, masks."""
    signature = contract.signatures(spec)[-1]
    features = [
        replace(tensor, shape=tuple(1 if size == "prompts" else size for size in tensor.shape))
        for tensor in (signature if precision == "fp32" else signature.in_half()).inputs
        if not {"points", "tokens"} & set(map(str, tensor.shape)) and tensor.name != "dense_embedding"
    ]
    points = {name: rows - contract.padding for name, rows in functions.items()}
    return swift_source(spec, contract.name, precision, points, features)


def _filled(name: str, words: Mapping[str, object]) -> str:
    """Fill a template in; it is read as a resource, so that it may lie in an archive."""
    template = files("samx.exporters.coreml") / "templates" / f"{name}.swift.in"
    return Template(template.read_text(encoding="utf-8")).substitute(words)


def decoder(job: ExportJob) -> Graphs:
    """Build the modules of a contract's packages, in fixed shapes and the types of the job's precision."""
    from samx.models.checkpoint import build_reference
    from samx.models.fast.graphs import client_notes
    from samx.models.fixed.decoder import to_half
    from samx.models.graph import Graph, Graphs

    graphs, modules = [], _modules()
    for signature in CONTRACTS[job.options.contract].signatures(job.spec):
        module = modules[signature.folder](build_reference(replace(job.loaded, spec=job.spec)))
        if job.precision in HALF:  # int8 is made from float16 packages afterwards
            signature, module = signature.in_half(), to_half(module)
        notes = client_notes(job.spec, signature.folder)
        graphs.append(Graph(signature.folder, module, signature.inputs, signature.outputs, notes))
    return Graphs(tuple(graphs), {"form": "neural_engine", "slots": True})


def _modules() -> Mapping[str, Callable[[ReferenceDecoder], nn.Module]]:
    from samx.models.fixed.decoder import AppleMaskDecoder, ApplePromptEncoder, NeuralEngineDecoder

    return {DECODER: NeuralEngineDecoder, PROMPT_ENCODER: ApplePromptEncoder, MASK_DECODER: AppleMaskDecoder}


def write(graphs: Sequence[Graph], job: ExportJob, directory: Path) -> Exported:
    """Write a package a graph into a directory, with a lint of their programs and a Swift example.

    Raises: SamxError when a program has what no package may have.
    """
    options: CoreMLOptions = job.options
    contract = CONTRACTS[options.contract]
    functions, default = chosen_functions(options)
    sizes = {name: contract.sizes(rows) for name, rows in functions.items()}
    programs = {graph.role: _write(graph, options, sizes, default, directory / graph.role) for graph in graphs}
    files = {file: role for graph in graphs for file, role in _roles(directory, graph.role).items()}
    notes = write_lint(directory, programs, default)
    swift = swift_example(job.spec, contract, job.precision, functions)
    (directory / SWIFT_FILE).write_text(swift, encoding="utf-8")
    chosen = {"ios": options.ios, "weights": options.weights, **_facts(contract, functions, default)}
    files = {**files, LINT_FILE: LINT_ROLE, SWIFT_FILE: SWIFT_ROLE}
    return Exported(files, chosen, _tools(), max(functions.values()), not contract.padding, notes)


def write_encoder(graph: Graph, job: ExportJob, directory: Path) -> Exported:
    """Write the package of an image encoder into a directory.

    Raises: UsageError for numbers of pictures that no package takes; SamxError as write().
    """
    from samx.exporters.coreml.encoder import write_encoder_package
    from samx.formats.coreml.lint import forbidden
    from samx.formats.coreml.package import package_from_directory
    from samx.formats.coreml.program import load_program

    options: CoreMLOptions = job.options
    path = write_encoder_package(graph, directory, ios=options.ios, precision=job.precision, image=options.image_input)
    if faults := forbidden(load_program(package_from_directory(path), path.name).functions):
        raise SamxError(f"{path.name} has what no package may have: {'; '.join(faults)}", fix="Please report this.")
    return Exported(_roles(directory, path.name, ENCODER_ROLE), {}, _tools())


def write_lint(directory: Path, programs: Mapping[str, Program], default: str) -> tuple[str, ...]:
    """Write the lint of each package's program; return what people should read about it.

    Raises: SamxError when a program has what no package may have.
    """
    from samx.formats.coreml.lint import forbidden, lint, lint_json

    for folder, program in programs.items():
        if faults := forbidden(program.functions):
            raise SamxError(f"{folder} has what no package may have: {'; '.join(faults)}", fix="Please report this.")
    found = {folder: lint(program.functions) for folder, program in programs.items()}
    report = {folder: lint_json(lints) for folder, lints in found.items()}
    (directory / LINT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return tuple(f"{NOTE} {folder}, {lints[default].lines(default)[0]}" for folder, lints in found.items())


def _write(
    graph: Graph, options: CoreMLOptions, functions: Mapping[str, Mapping[str, int]], default: str, path: Path
) -> Program:
    """Write one package, and read it back from the disk."""
    from samx.exporters.coreml.convert import prepare, write_package
    from samx.formats.coreml.package import package_from_directory
    from samx.formats.coreml.program import load_program

    signature = Signature(graph.role, graph.inputs, graph.outputs)
    if options.weights is not None:
        prepare(graph.module, options.weights)
    write_package(
        graph.module, signature, functions, default, path, ios=options.ios, weights=options.weights,
        metadata=stored_notes(graph.notes),
    )  # fmt: skip
    return load_program(package_from_directory(path), graph.role)


def _roles(directory: Path, folder: str, role: str = PACKAGE_ROLE) -> dict[str, str]:
    files = sorted(path for path in (directory / folder).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): role for path in files}


def _facts(contract: Contract, functions: Mapping[str, int], default: str) -> dict[str, Any]:
    points = ShapeRange(min(functions.values()), functions[default], max(functions.values()))
    return {
        "points": points.to_json(), "prompts": ONE_PROMPT.to_json(),
        "contract": contract.name, "functions": dict(functions), "default_function": default,
    }  # fmt: skip


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "coremltools")}
