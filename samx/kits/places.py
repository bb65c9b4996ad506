"""Where a kit runs: for each device the library, the files and the limits, as its runner reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from samx import registry
from samx.artifacts.store import Artifact
from samx.errors import UsageError
from samx.formats.coreml.package import SINGLE_FUNCTION
from samx.formats.tensorrt.engine import CAPABILITIES
from samx.formats.tensorrt.library import library_of
from samx.formats.tensorrt.plan import PLAN_ROLE, read_plan
from samx.models.spec import PADDED_POINT
from samx.registry import GRAPH_DEVICE, backend, load
from samx.runtimes.base import DEFAULT_CHUNK, Padding, graph_roles
from samx.runtimes.coreml.compute_plan import CLASSES, MULTIFUNCTION_MACOS, PLAN_MACOS
from samx.runtimes.coreml.packages import OpenedPackages, open_packages
from samx.runtimes.coreml.runtime import MUST, UNITS
from samx.runtimes.onnxruntime import PROVIDERS, usual_chunk

FOLDER = "artifact"  # of the artifact's files in a kit
PIP = "python3 -m pip install"
ONNX_PACKAGES = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu"}
# What a Core ML package's tensor takes or gives, where the runner has it under another name.
OTHER_NAMES: Mapping[str, str] = {
    "sparse_embedding": "sparse_embeddings", "dense_embedding": "dense_embeddings", "scores": "iou_predictions",
}  # fmt: skip

Place = dict[str, Any]


def places(artifact: Artifact) -> dict[str, Place]:
    """Describe the devices that a target's kit runs on, its own first.

    Raises: UsageError for a target that has no kit; MissingExtraError where reading the artifact needs a library.
    """
    entry = backend(artifact.manifest.target)
    if entry.kit is None:
        known = " or ".join(other.target for other in registry.BACKENDS if other.kit is not None)
        raise UsageError("there is no kit for this target", found=f"'{entry.target}'", expected=known)
    return {name: {**place, "level": entry.level(name)} for name, place in load(entry.kit)(artifact).items()}


def onnx_places(artifact: Artifact) -> dict[str, Place]:
    """Describe the devices of a kit for ONNX Runtime."""
    return {device: _onnx(artifact, device) for device in PROVIDERS}


def _onnx(artifact: Artifact, device: str) -> Place:
    options = artifact.manifest.options
    return {
        **_library("onnxruntime", "onnxruntime", (1, 20), None, f"{PIP} {ONNX_PACKAGES[device]}"),
        **_calls(artifact, Padding.of(options, str(artifact.path)), usual_chunk(options, device)),
        "graphs": [_inside(artifact.file_with_role(role)) for role in graph_roles(options)],
        "provider": PROVIDERS[device],
    }  # fmt: skip


def engine_places(artifact: Artifact) -> dict[str, Place]:
    """Describe the devices of a kit with an engine."""
    entry, plan = backend(artifact.manifest.target), read_plan(artifact)
    library, padded = library_of(plan.target), Padding.of(artifact.manifest.options, str(artifact.path))
    install = library.update.removeprefix("Install it with: ")
    engine = {
        **_library("tensorrt", library.module, library.minimum, library.below, install),
        **_calls(artifact, padded, plan.prompts.max),
        "graphs": [_inside(plan.model)], "plan": _inside(artifact.file_with_role(PLAN_ROLE)),
        "capabilities": list(CAPABILITIES[plan.compute]), "compiles_kernels": library.has_runtime_cache,
    }  # fmt: skip
    return {entry.device: engine, "cpu": _onnx(artifact, "cpu")}


def coreml_places(artifact: Artifact) -> dict[str, Place]:
    """Describe the devices of a kit with Core ML packages."""
    opened = open_packages(artifact)
    names = set(opened.functions.values())
    shared = {
        **_library("coreml", "coremltools", (9, 0), (10,), f"{PIP} 'coremltools>=9,<10'"),
        **_calls(artifact, opened.padding, DEFAULT_CHUNK),
        "macos": list(PLAN_MACOS if names == {SINGLE_FUNCTION} else MULTIFUNCTION_MACOS),
        "functions": {str(rows): name for rows, name in opened.functions.items()},
        "steps": [_step(opened, folder) for folder in opened.programs], "words": dict(CLASSES),
    }  # fmt: skip
    return {device: {**shared, "units": units, "must": MUST.get(device)} for device, units in UNITS.items()}


def _step(opened: OpenedPackages, folder: str) -> dict[str, Any]:
    """Say what a package takes, from where and in which type, and what it gives."""
    program, function = opened.programs[folder], next(iter(opened.functions.values()))
    known = {**OTHER_NAMES, **{theirs: ours for ours, theirs in opened.contract.image_names.items()}}
    types = {tensor.name: np.dtype(tensor.array_type).name for tensor in program.inputs(function)}
    return {
        "package": _inside(folder),
        "inputs": {name: [known.get(name, name), kind] for name, kind in types.items()},
        "outputs": {tensor.name: known.get(tensor.name, tensor.name) for tensor in program.outputs(function)},
    }


def _library(
    runtime: str, module: str, minimum: tuple[int, ...], below: tuple[int, ...] | None, install: str
) -> dict[str, Any]:
    versions = f"{_dotted(minimum)} or newer" + ("" if below is None else f", older than {_dotted(below)}")
    return {"runtime": runtime, "library": module, "minimum": list(minimum),
            "below": None if below is None else list(below), "versions": versions, "install": install}  # fmt: skip


def _calls(artifact: Artifact, padded: Padding | None, chunk: int) -> dict[str, Any]:
    """Say how many prompts a call takes, how it is filled up, and how large the files are."""
    manifest = artifact.manifest
    size = sum(file.bytes for file in backend(manifest.target).opened(manifest, GRAPH_DEVICE))
    if padded is None:
        return {"chunk": chunk, "slots": None, "bytes": size}
    filling = {"points": padded.points.min, "prompts": padded.prompts.min, "sizes": list(padded.sizes)}
    return {"chunk": min(chunk, padded.prompts.max), "slots": {**filling, "empty": PADDED_POINT}, "bytes": size}


def _inside(name: str) -> str:
    return f"{FOLDER}/{name}"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
