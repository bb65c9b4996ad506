"""Small MIL programs and packages, made with coremltools' builder or from torch modules, whole or damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.formats.coreml.package import DECODER, PackageFiles, package_from_directory
from samx.formats.coreml.program import Program, open_coremltools
from samx.models.spec import DecoderSpec

ct = open_coremltools("these tests")
mb = ct.converters.mil.Builder
types = ct.converters.mil.mil.types
Array = NDArray[Any]
Build = Callable[..., Any]


def function(build: Build, inputs: Mapping[str, tuple[tuple[int, ...], str]], ios: int = 18) -> Any:
    """Make a MIL function: `build` gets the inputs by name, which are (shape, type)."""
    specs = {
        name: mb.placeholder(shape=shape, dtype=types.string_to_builtin(dtype))
        for name, (shape, dtype) in inputs.items()
    }
    with ct.converters.mil.mil.Function(specs, opset_version=target(ios)) as made:
        built = build(**made.inputs)
        made.set_outputs(list(built) if isinstance(built, (tuple, list)) else [built])
    return made


def program(build: Build, inputs: Mapping[str, tuple[tuple[int, ...], str]], ios: int = 18) -> Program:
    """Make a program of one function that was never on disk."""
    return Program("a test", ios - 9, {"main": function(build, inputs, ios)}, "main")


def target(ios: int) -> Any:
    """Name a system as coremltools does."""
    return getattr(ct.target, f"iOS{ios}")


def save_function(made: Any, path: Path, ios: int = 18) -> Path:
    """Write a function as a package, as it is."""
    whole = ct.converters.mil.mil.Program()
    whole.add_function("main", made)
    empty = ct.PassPipeline.EMPTY
    _converted(whole, path, minimum_deployment_target=target(ios), pass_pipeline=empty)
    return path


def save_module(
    module: nn.Module, feed: Mapping[str, Tensor], outputs: Sequence[str], path: Path, ios: int = 18
) -> Path:
    """Write a torch module as a package; its types stay as they are."""
    exported = torch.export.export(module.eval(), tuple(feed.values())).run_decompositions({})
    _drop_nothings(exported)
    as_numpy = {name: torch.empty(0, dtype=tensor.dtype).numpy().dtype.type for name, tensor in feed.items()}
    kinds = {np.float16: np.float16, np.float32: np.float32}
    inputs = [ct.TensorType(name, tuple(x.shape), dtype=kinds[as_numpy[name]]) for name, x in feed.items()]
    wide = next(iter(feed.values())).dtype
    _converted(
        exported, path, inputs=inputs, minimum_deployment_target=target(ios), compute_precision=ct.precision.FLOAT32,
        outputs=[ct.TensorType(name, dtype=np.float16 if wide == torch.float16 else np.float32) for name in outputs],
    )  # fmt: skip
    return path


def join(parts: Mapping[str, Path], path: Path) -> Path:
    """Write packages of one function each as one package of several functions."""
    functions = ct.utils.MultiFunctionDescriptor()
    for name, part in parts.items():
        functions.add_function(str(part), "main", name)
    functions.default_function_name = next(iter(parts))
    ct.utils.save_multifunction(functions, str(path))
    return path


def edited(package: PackageFiles, change: Callable[[Any], object]) -> PackageFiles:
    """Change a package's protobuf."""
    spec = ct.proto.Model_pb2.Model.FromString(package.model)
    change(spec)
    return replace(package, files={**package.files, package.model_path: spec.SerializeToString()})


def operation(spec: Any, kind: str, name: str = "main") -> Any:
    """Find the first operation of a kind in a protobuf."""
    found = spec.mlProgram.functions[name]
    return next(op for op in found.block_specializations[found.opset].operations if op.type == kind)


def artifact(path: Path, package: Path, spec: DecoderSpec, options: Mapping[str, Any]) -> Artifact:
    """Seal a package as an artifact."""
    files = package_from_directory(package).files
    with staging(path, overwrite=False) as directory:
        for name, data in files.items():
            (directory / DECODER / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / DECODER / name).write_bytes(data)
        checkpoint = CheckpointEntry("toy", "toy", hashlib.sha256(b"toy").hexdigest(), 3)
        manifest = Manifest("coreml", "fp32", spec, checkpoint, dict(options))
        seal(directory, manifest, dict.fromkeys((f"{DECODER}/{name}" for name in files), "package"))
    return Artifact.open(path)


def _converted(source: Any, path: Path, **options: Any) -> None:
    with redirect_stderr(StringIO()):  # progress bars
        ct.convert(source, convert_to="mlprogram", skip_model_load=True, **options).save(str(path))


def _drop_nothings(exported: Any) -> None:
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
        if node.target in (torch.ops.aten.alias.default, torch.ops.aten._assert_tensor_metadata.default):
            graph.erase_node(node)
    exported.graph_module.recompile()
