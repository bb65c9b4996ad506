"""BuildPlan: everything that turns one ONNX file into an engine, written as build.json beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samx.artifacts import strict_json as read
from samx.artifacts.manifest import SHA256, check_file_name
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UsageError
from samx.formats.tensorrt.library import Library, library_of
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, TensorSpec

PLAN_FILE, PLAN_ROLE = "build.json", "build_plan"
FORMAT, SCHEMA_VERSION = "samx-build-plan", 1
FIELDS = (
    "format", "schema_version", "target", "model", "onnx_sha256", "strongly_typed", "tf32", "compute", "prompts",
    "points", "inputs", "outputs", "profile", "command",
)  # fmt: skip
REMEDY = "Export again with this version of samx."
# What 'samx build' writes; the vendor's own builder takes the same name.
ENGINE_FILE, ENGINE_ROLE = "decoder.engine", "engine"
BOUNDS = ("min", "opt", "max")
# TensorRT for RTX is always strongly typed and compiles for Ampere and later by default.
VENDOR_FLAGS: Mapping[str, tuple[str, ...]] = {
    "this_gpu": ("--stronglyTyped",),
    "ampere_plus": (),
    "sm75": ("--computeCapabilities=75",),
}

Shape = tuple[int, ...]
Limits = tuple[Shape, Shape, Shape]  # least, usual, most


@dataclass(frozen=True)
class Port:
    """Describe one tensor that goes in or comes out; a string in the shape is a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: TensorSpec) -> Port:
        """Take over what the spec says."""
        return cls(tensor.name, tensor.shape, tensor.dtype)

    @property
    def is_dynamic(self) -> bool:
        """Whether any axis is."""
        return any(isinstance(size, str) for size in self.shape)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class BuildPlan:
    """Say how an engine is built: from which file, for which shapes and GPUs. Strongly typed always, TF32 never."""

    target: str
    model: str
    onnx_sha256: str
    prompts: ShapeRange
    points: ShapeRange
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    compute: str

    @classmethod
    def of(
        cls, target: str, spec: DecoderSpec, model: str, onnx_sha256: str, prompts: ShapeRange, points: ShapeRange,
        turing: bool = False,
    ) -> BuildPlan:  # fmt: skip
        """Plan an engine of a decoder.

        Raises: UsageError for a target without engines, or one that has none for Turing alone.
        """
        library = library_of(target)
        if turing and "sm75" not in library.compute:
            raise UsageError(f"target '{target}' has no engines for Turing alone", fix="Build on the Turing GPU.")
        compute = "sm75" if turing else library.compute[0]
        inputs, outputs = _ports(spec.inputs), _ports(spec.outputs)
        return cls(target, model, onnx_sha256, prompts, points, inputs, outputs, compute)

    @property
    def library(self) -> Library:
        """The library that builds and runs the engine."""
        return library_of(self.target)

    @property
    def profile(self) -> Mapping[str, Limits]:
        """Least, usual and most shape of every dynamic input."""
        return {port.name: self._limits(port) for port in self.inputs if port.is_dynamic}

    @property
    def fixed(self) -> Mapping[str, int]:
        """The dynamic axes that the engine has one size of, with that size."""
        spans = {"prompts": self.prompts, "points": self.points}
        return {axis: span.min for axis, span in spans.items() if span.min == span.max}

    @property
    def command(self) -> str:
        """Command line of the vendor's own builder that makes the same engine."""
        words = [self.library.command, f"--onnx={self.model}", f"--saveEngine={ENGINE_FILE}", "--skipInference"]
        words += ["--noTF32", *VENDOR_FLAGS[self.compute]]
        for i, bound in enumerate(BOUNDS):
            shapes = [f"{name}:{'x'.join(map(str, limits[i]))}" for name, limits in self.profile.items()]
            words.append(f"--{bound}Shapes={','.join(shapes)}")
        return " ".join(words)

    def check_spec(self, spec: DecoderSpec, where: str) -> None:
        """Refuse a plan that was made for another decoder.

        Raises: ArtifactError.
        """
        if (self.inputs, self.outputs) != (_ports(spec.inputs), _ports(spec.outputs)):
            raise ArtifactError(f"{where} describes other tensors than the manifest's decoder", fix=REMEDY)

    def to_json(self) -> dict[str, Any]:
        """Give the plan as plain data, with what follows from it for readers of the file."""
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "target": self.target,
            "model": self.model,
            "onnx_sha256": self.onnx_sha256,
            "strongly_typed": True,
            "tf32": False,
            "compute": self.compute,
            "prompts": self.prompts.to_json(),
            "points": self.points.to_json(),
            "inputs": [port.to_json() for port in self.inputs],
            "outputs": [port.to_json() for port in self.outputs],
            "profile": {name: [list(shape) for shape in limits] for name, limits in self.profile.items()},
            "command": self.command,
        }

    def to_bytes(self) -> bytes:
        """Write the file's content."""
        return (json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> BuildPlan:
        """Read the file's content.

        Raises: ArtifactError for anything that to_bytes() would not have written.
        """
        body = read.fields(read.parse(data, where), FIELDS, where)
        kind = (body["format"], body["schema_version"])
        if kind != (FORMAT, SCHEMA_VERSION):
            raise ArtifactError(
                f"{where} has another format", found=kind, expected=(FORMAT, SCHEMA_VERSION), fix=REMEDY
            )
        plan = cls(
            target=read.text(body["target"], f"{where}: target"),
            model=check_file_name(read.text(body["model"], f"{where}: model"), where),
            onnx_sha256=read.text(body["onnx_sha256"], f"{where}: onnx_sha256"),
            prompts=ShapeRange.from_json(body["prompts"], f"{where}: prompts"),
            points=ShapeRange.from_json(body["points"], f"{where}: points"),
            inputs=_read_ports(body["inputs"], f"{where}: inputs"),
            outputs=_read_ports(body["outputs"], f"{where}: outputs"),
            compute=read.text(body["compute"], f"{where}: compute"),
        )
        plan._check(body, where)
        return plan

    def _check(self, body: Mapping[str, Any], where: str) -> None:
        """Refuse what no plan of ours says, and what contradicts itself."""
        try:
            known = self.compute in self.library.compute
        except UsageError as cause:
            raise ArtifactError(f"{where}: target is unknown", found=repr(self.target), fix=REMEDY) from cause
        if not known or not SHA256.fullmatch(self.onnx_sha256):
            raise ArtifactError(
                f"{where} is no plan of this target", found=f"{self.compute}, {self.onnx_sha256}"[:80], fix=REMEDY
            )
        for key, value in self.to_json().items():
            if key != "command" and body[key] != value:
                raise ArtifactError(f"{where} contradicts itself", found=f"another {key}", fix=REMEDY)

    def _limits(self, port: Port) -> Limits:
        spans = {"prompts": self.prompts, "points": self.points}
        if any(isinstance(size, str) and size not in spans for size in port.shape):
            raise ArtifactError(f"input {port.name} has an axis that no plan knows", found=port.shape, fix=REMEDY)
        sizes = [ShapeRange(size, size, size) if isinstance(size, int) else spans[size] for size in port.shape]
        return (
            tuple(size.min for size in sizes),
            tuple(size.opt for size in sizes),
            tuple(size.max for size in sizes),
        )


def _ports(tensors: Sequence[TensorSpec]) -> tuple[Port, ...]:
    return tuple(Port.of(tensor) for tensor in tensors)


def _read_ports(value: Any, where: str) -> tuple[Port, ...]:
    ports = []
    for i, entry in enumerate(read.items(value, where)):
        found = read.fields(entry, ("name", "shape", "dtype"), f"{where} {i}")
        name, dtype = (read.text(found[key], f"{where} {i}: {key}") for key in ("name", "dtype"))
        ports.append(
            Port(name, tuple(_size(size, f"{where} {i}: shape") for size in read.items(found["shape"], where)), dtype)
        )
    return tuple(ports)


def _size(value: Any, where: str) -> int | str:
    return read.text(value, where) if isinstance(value, str) else ShapeRange.from_json([value] * 3, where).min


def read_plan(artifact: Artifact) -> BuildPlan:
    """Read an artifact's build.json and compare it with the manifest.

    Raises: ArtifactError.
    """
    name = artifact.file_with_role(PLAN_ROLE)
    plan = BuildPlan.from_bytes(artifact.read(name), f"{artifact.path / name}")
    plan.check_spec(artifact.manifest.spec, f"{artifact.path / name}")
    if plan.target != artifact.manifest.target:
        raise ArtifactError(
            f"{artifact.path / name} is for another target", found=plan.target, expected=artifact.manifest.target,
            fix="Export again.",
        )  # fmt: skip
    return plan


def engine_file(artifact: Artifact) -> str:
    """Name the artifact's engine.

    Raises: ArtifactError when it has none yet.
    """
    if not any(entry.role == ENGINE_ROLE for entry in artifact.manifest.files.values()):
        raise ArtifactError(
            f"artifact {artifact.path} has no engine yet", fix=f"Build it on the device: samx build {artifact.path}"
        )
    return artifact.file_with_role(ENGINE_ROLE)
