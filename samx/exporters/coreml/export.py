"""Write Core ML packages for the Neural Engine: fixed shapes, a function for every usual number of points."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.errors import SamxError, UsageError
from samx.exporters.base import HALF, Exported, ExportJob
from samx.exporters.coreml import CoreMLOptions
from samx.exporters.coreml.swift import SWIFT_FILE, swift_example
from samx.exporters.onnx import stored_notes
from samx.formats.coreml.contract import (
    APPLE_FAMILY,
    CONTRACTS,
    MASK_DECODER,
    PROMPT_ENCODER,
    Contract,
    Signature,
)
from samx.formats.coreml.functions import MULTIFUNCTION_IOS, SINGLE_FUNCTION
from samx.formats.coreml.package import DECODER
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import nn

    from samx.formats.coreml.lint import LintReport
    from samx.formats.coreml.program import Program
    from samx.models.graph import Graph, Graphs
    from samx.models.reference import ReferenceDecoder

POINTS = ShapeRange(1, 2, 16)
ONE_PROMPT = ShapeRange(1, 1, 1)  # the Neural Engine is fed click by click
SINGLE_POINTS = ShapeRange(8, 8, 8)  # where a package has one function
USUAL_ROWS = (1, 2, 4, 8, 16, 32, 64)  # of which those inside --points become functions
IOS = (16, 17, 18)
INT8_IOS = 17  # the first whose programs have quantize and dequantize
PACKAGE_ROLE, SWIFT_ROLE = "package", "example"
LINT_FILE, LINT_ROLE = "neural_engine_lint.json", "lint"
NOTE = f"Neural Engine, a lint and no measurement ({LINT_FILE}):"


def check_options(options: CoreMLOptions, precision: str, spec: DecoderSpec | None) -> None:
    """Refuse what no package can be.

    Raises: UsageError; MissingExtraError.
    """
    if options.contract not in CONTRACTS:
        raise UsageError("unknown contract", found=repr(options.contract), expected=" or ".join(CONTRACTS))
    if options.ios not in IOS:
        raise UsageError("iOS version is not offered", found=options.ios, expected=" or ".join(map(str, IOS)))
    _check_precision(options, precision)
    if options.prompts not in (None, ONE_PROMPT):
        raise UsageError("a function takes one prompt", found=f"--prompts {options.prompts}", fix="Call it in turn.")
    _functions(options)
    if spec is not None:
        _check_contract(CONTRACTS[options.contract], spec)


def decoder(job: ExportJob) -> Graphs:
    """Build the modules of a contract's packages, in fixed shapes and the types of the job's precision."""
    from samx.models.checkpoint import build_reference
    from samx.models.fast.graphs import client_notes
    from samx.models.fixed.decoder import to_half
    from samx.models.graph import Graph, Graphs

    graphs, modules = [], _modules()
    for signature in CONTRACTS[_options(job).contract].signatures(job.spec):
        module = modules[signature.folder](build_reference(replace(job.loaded, spec=job.spec)))
        if job.precision in HALF:  # int8 is made from float16 packages afterwards
            signature, module = signature.in_half(), to_half(module)
        notes = client_notes(job.spec, signature.folder)
        graphs.append(Graph(signature.folder, module, signature.inputs, signature.outputs, notes))
    return Graphs(tuple(graphs), {"form": "neural_engine", "slots": True})


def _modules() -> Mapping[str, Callable[[ReferenceDecoder], nn.Module]]:
    from samx.models.fixed.apple import AppleMaskDecoder, ApplePromptEncoder
    from samx.models.fixed.decoder import NeuralEngineDecoder

    return {DECODER: NeuralEngineDecoder, PROMPT_ENCODER: ApplePromptEncoder, MASK_DECODER: AppleMaskDecoder}


def write(graphs: Sequence[Graph], job: ExportJob, directory: Path) -> Exported:
    """Write a package a graph into a directory, with a lint of their programs and a Swift example.

    Raises: SamxError when a program has what no package may have.
    """
    options, contract = _options(job), CONTRACTS[_options(job).contract]
    functions, default = _functions(options)
    sizes = {name: contract.sizes(rows) for name, rows in functions.items()}
    programs = {graph.role: _write(graph, options, sizes, default, directory / graph.role) for graph in graphs}
    files = {file: role for graph in graphs for file, role in _roles(directory, graph.role).items()}
    notes = write_lint(directory, programs, default)
    swift = swift_example(job.spec, contract, job.precision, functions)
    (directory / SWIFT_FILE).write_text(swift, encoding="utf-8")
    chosen = {"ios": options.ios, "weights": options.weights, **_facts(contract, functions, default)}
    files = {**files, LINT_FILE: LINT_ROLE, SWIFT_FILE: SWIFT_ROLE}
    return Exported(files, chosen, _tools(), max(functions.values()), notes)


def _options(job: ExportJob) -> CoreMLOptions:
    assert isinstance(job.options, CoreMLOptions)
    return job.options


def write_lint(directory: Path, programs: Mapping[str, Program], default: str) -> tuple[str, ...]:
    """Write the lint of each package's program; return what people should read about it.

    Raises: SamxError when a program has what no package may have.
    """
    reports = {folder: _checked(program, folder) for folder, program in programs.items()}
    lints = {folder: report.to_json() for folder, report in reports.items()}
    (directory / LINT_FILE).write_text(json.dumps(lints, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return tuple(f"{NOTE} {folder}, {report.function_lines(default)[0]}" for folder, report in reports.items())


def _functions(options: CoreMLOptions) -> tuple[dict[str, int], str]:
    """Choose the functions with their rows, and the default one.

    Raises: UsageError for points that no package has room for.
    """
    contract, several = CONTRACTS[options.contract], options.ios >= MULTIFUNCTION_IOS
    usual = POINTS if several else SINGLE_POINTS
    span = options.points or ShapeRange(*(rows + contract.padding for rows in usual.to_json()))
    rows = _rows(contract, span, options.ios)
    names = {n: contract.function_name(n) if several else SINGLE_FUNCTION for n in rows}
    return {name: n for n, name in names.items()}, names[max(span.opt, rows[0])]


def _check_precision(options: CoreMLOptions, precision: str) -> None:
    """Refuse smaller weights beside another precision than float16, and activations that a system does not know."""
    if options.weights is not None:
        from samx.exporters.coreml.weights import check_compression

        check_compression(options.weights)
        if precision != "fp16":
            fix = "With --int8 a search chooses the weights that get 8 bits." if precision == "int8" else None
            found = f"precision {precision}"
            raise UsageError("smaller weights go with float16", found=found, expected="--fp16", fix=fix)
    if precision == "int8" and options.ios < INT8_IOS:
        expected = f"--ios {INT8_IOS} or later"
        raise UsageError("8-bit activations came with iOS 17", found=f"--ios {options.ios}", expected=expected)


def _check_contract(contract: Contract, spec: DecoderSpec) -> None:
    """Refuse what Apple's packages have no place for."""
    if contract.name != "apple":
        return
    if spec.family != APPLE_FAMILY:
        raise UsageError("the apps of this contract know SAM 2.1 only", found=spec.family, expected="--contract samx")
    if spec.mask_input:
        raise UsageError("this contract has no mask prompts", found="--mask-input", expected="--contract samx")


def _rows(contract: Contract, span: ShapeRange, ios: int) -> list[int]:
    padding = contract.padding
    if span.max <= padding:
        raise UsageError("no room for a point beside the padding", found=f"--points {span}", expected="2 or more")
    usual = [n + padding for n in USUAL_ROWS if n + padding in span]
    rows = sorted({n for n in (*usual, span.min, span.opt, span.max) if n > padding})
    if ios < MULTIFUNCTION_IOS and len(rows) > 1:
        raise UsageError(
            f"a package for iOS {ios} has one function", found=f"--points {span}", expected="one number, such as 8",
            fix=f"Or choose --ios {MULTIFUNCTION_IOS}.",
        )  # fmt: skip
    return rows


def _write(
    graph: Graph, options: CoreMLOptions, functions: Mapping[str, Mapping[str, int]], default: str, path: Path
) -> Program:
    """Write one package, and read it back from the disk."""
    from samx.exporters.coreml.convert import write_package
    from samx.exporters.coreml.weights import prepare
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


def _checked(program: Program, name: str) -> LintReport:
    """Lint a program that has nothing forbidden."""
    from samx.formats.coreml.lint import forbidden, lint

    faults = forbidden(program.functions)
    if faults:
        raise SamxError(f"{name} has what no package may have: {'; '.join(faults)}", fix="Please report this.")
    return lint(program.functions)


def _roles(directory: Path, folder: str) -> dict[str, str]:
    files = sorted(path for path in (directory / folder).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): PACKAGE_ROLE for path in files}


def _facts(contract: Contract, functions: Mapping[str, int], default: str) -> dict[str, Any]:
    points = ShapeRange(min(functions.values()), functions[default], max(functions.values()))
    return {
        "points": points.to_json(), "prompts": ONE_PROMPT.to_json(),
        "contract": contract.name, "functions": dict(functions), "default_function": default,
    }  # fmt: skip


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "coremltools")}
