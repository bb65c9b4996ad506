"""Which files of an artifact Triton's own backends take, and what goes in and out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.store import Artifact
from samx.artifacts.trust import require_trusted
from samx.errors import ParityError
from samx.formats.onnx import ELEMENT_TYPES, read
from samx.formats.tensorrt.plan import DECODER, engine_file, read_plan, read_plans
from samx.kits.triton_backend import Part, Parts, Port
from samx.runtimes.base import DEFAULT_CHUNK, graph_roles

TYPES = {number: name for name, number in ELEMENT_TYPES.items()}
# As the evidence was made: on the processor. On a GPU ONNX Runtime would multiply in TF32, if it were not told.
ON_CPU = """instance_group [ { count: 1 kind: KIND_CPU } ]  # KIND_GPU: masks were not compared on one
optimization { execution_accelerators { gpu_execution_accelerator: [
  { name: "cuda" parameters { key: "use_tf32" value: "0" } } ] } }"""
ON_GPU = "instance_group [ { count: 1 kind: KIND_GPU } ]"


@dataclass(frozen=True)
class Backend:
    """Say what one of Triton's backends runs, and where."""

    parts: Callable[[Artifact], Parts]
    instances: str


def _graphs(artifact: Artifact) -> Parts:
    """Describe ONNX files.

    Raises: MissingExtraError without onnx.
    """
    roles = (*graph_roles(artifact.manifest.options), ENCODER_ROLE)
    return Parts("onnxruntime", DEFAULT_CHUNK, {role: _graph(artifact, role) for role in roles})


def _graph(artifact: Artifact, role: str) -> Part:
    """Describe one; weights beside it keep their names, by which it finds them."""
    name = artifact.file_with_role(role)
    graph = read(artifact.path / name).graph
    weights = {n: n for n, entry in artifact.manifest.files.items() if entry.role == f"{role}_weights"}
    return Part({"model.onnx": name, **weights}, tuple(map(_port, graph.input)), tuple(map(_port, graph.output)))


def _port(value: Any) -> Port:
    of = value.type.tensor_type
    return Port(value.name, TYPES[of.elem_type], tuple(dim.dim_param or dim.dim_value for dim in of.shape.dim))


def _engines(artifact: Artifact) -> Parts:
    """Describe engines.

    Raises: ArtifactError for one that is not built, or not this user's; ParityError for one that was not compared.
    """
    if not any(evidence.level == "device" and evidence.passed for evidence in artifact.manifest.evidence):
        fix = f"Run it on the GPU: samx validate {artifact.path} --device cuda"
        raise ParityError(f"the engine of {artifact.path} was not compared with PyTorch", fix=fix)
    parts = {}
    for plan in read_plans(artifact):
        name, role = engine_file(artifact, plan.PART), "decoder" if plan.PART is DECODER else ENCODER_ROLE
        require_trusted(artifact.manifest.files[name].sha256, artifact.path)
        ports = [tuple(Port(p.name, p.dtype, p.shape) for p in side) for side in (plan.inputs, plan.outputs)]
        parts[role] = Part({"model.plan": name}, *ports)
    return Parts("tensorrt", read_plan(artifact).prompts.max, parts)


BACKENDS: Mapping[str, Backend] = {
    "onnxruntime": Backend(_graphs, ON_CPU),
    "tensorrt": Backend(_engines, ON_GPU),
}
