"""BuildPlan: everything that turns one ONNX file into an engine, written as build.json beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from samx.artifacts.manifest import FileName
from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import Document, Sha256, between
from samx.errors import ArtifactError, UsageError
from samx.formats.tensorrt.library import Library, check_compute, library_of
from samx.models.shape_range import MOST, ShapeRange
from samx.models.spec import DecoderSpec, TensorSpec

PLAN_FILE, PLAN_ROLE = "build.json", "build_plan"
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
    shape: tuple[str | Annotated[int, between(1, MOST)], ...]
    dtype: str

    @classmethod
    def of(cls, tensor: TensorSpec) -> Port:
        """Return what the spec says."""
        return cls(tensor.name, tensor.shape, tensor.dtype)

    @property
    def is_dynamic(self) -> bool:
        """Whether any axis is."""
        return any(isinstance(size, str) for size in self.shape)


@dataclass(frozen=True)
class BuildPlan(Document):
    """Describe how an engine is built: from which file, for which shapes and GPUs. Strongly typed, without TF32."""

    HEADER = {"format": "samx-build-plan", "schema_version": 1, "strongly_typed": True, "tf32": False}
    DERIVED = ("profile",)
    NOTES = ("command",)

    target: str
    model: FileName
    onnx_sha256: Sha256
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

    def check(self, where: str) -> None:
        """Refuse a target that is unknown, and GPUs that it has no engines for."""
        check_compute(self.target, self.compute, where)

    def _limits(self, port: Port) -> Limits:
        spans = {"prompts": self.prompts, "points": self.points}
        if any(isinstance(size, str) and size not in spans for size in port.shape):
            raise ArtifactError(f"input {port.name} has an axis that no plan knows", found=port.shape, fix=REMEDY)
        sizes = [ShapeRange(size, size, size) if isinstance(size, int) else spans[size] for size in port.shape]
        return (tuple(size.min for size in sizes), tuple(size.opt for size in sizes), tuple(size.max for size in sizes))


def _ports(tensors: Sequence[TensorSpec]) -> tuple[Port, ...]:
    return tuple(Port.of(tensor) for tensor in tensors)


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
