"""Say what a file or directory is, without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import parse
from samx.errors import InputError
from samx.extras import require

METADATA_PREFIX = "samx."
PACKAGE_SUFFIX = ".mlpackage"


def inspect(path: Path) -> dict[str, Any]:
    """Describe an artifact, an ONNX or OpenVINO file by the metadata inside, or a Core ML package by its functions.

    Raises: ArtifactError for a damaged artifact; InputError for anything else.
    """
    if path.suffix == PACKAGE_SUFFIX and path.is_dir():
        return {"kind": "coreml package", "path": str(path), **_package_facts(path)}
    if path.is_dir():
        return {"kind": "artifact", **Artifact.inspect(path)}
    if path.suffix == ".onnx" and path.is_file():
        return {"kind": "onnx", "path": str(path), "bytes": path.stat().st_size, **_onnx_facts(path)}
    if path.suffix == ".xml" and path.is_file():
        return {"kind": "openvino", "path": str(path), "bytes": path.stat().st_size, **_openvino_facts(path)}
    raise InputError(
        f"cannot inspect '{path}'", found="a file of another kind" if path.exists() else "nothing",
        expected="an artifact directory, an .onnx file, an OpenVINO .xml or an .mlpackage",
        fix="Name what 'samx export' left.",
    )  # fmt: skip


def _onnx_facts(path: Path) -> dict[str, Any]:
    onnx = require("onnx", "export", "looking into an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as cause:  # protobuf's errors share no base class with onnx's
        raise InputError(f"'{path}' is no ONNX file", found=cause, fix="Export it again.") from cause
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "samx": {
            key.removeprefix(METADATA_PREFIX): parse(value.encode(), f"'{path}': {key}")
            for key, value in metadata.items()
            if key.startswith(METADATA_PREFIX)
        },
    }


def _openvino_facts(path: Path) -> dict[str, Any]:
    from samx.formats.openvino import ir

    weights = path.with_suffix(ir.WEIGHTS_SUFFIX)
    try:
        files = ir.Ir(path.read_bytes(), weights.read_bytes())
    except OSError as cause:
        raise InputError(
            f"'{path}' lacks its weights", found=cause.strerror, expected=weights.name, fix="Keep the two together."
        ) from cause
    graph = ir.read(files)
    return {
        "inputs": [port.get_any_name() for port in graph.inputs],
        "outputs": [port.get_any_name() for port in graph.outputs],
        "samx": ir.metadata(graph),
    }


def _package_facts(path: Path) -> dict[str, Any]:
    from samx.formats.coreml.lint import lint
    from samx.formats.coreml.package import package_from_directory
    from samx.formats.coreml.program import load_program

    files = package_from_directory(path)
    program = load_program(files, str(path))
    return {
        "bytes": files.size,
        "minimum_os": program.minimum_os,
        "default_function": program.default,
        "functions": {
            name: {
                "inputs": [str(tensor) for tensor in program.inputs(name)],
                "outputs": [str(tensor) for tensor in program.outputs(name)],
            }
            for name in program.functions
        },
        "lint": lint(program.functions).lines(),
    }
