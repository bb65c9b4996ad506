"""EnginePlan: everything that turns one ONNX file into an engine, written beside it, a decoder's as build.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from samx.artifacts.manifest import FileName, Manifest
from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import Document, Sha256, between
from samx.errors import ArtifactError, UsageError
from samx.formats.tensorrt.library import Library, check_compute, library_of
from samx.models.shape_range import MOST, ShapeRange
from samx.models.spec import DecoderSpec, TensorSpec

REMEDY = "Export again with this version of samx."
BOUNDS = ("min", "opt", "max")
# TensorRT for RTX is always strongly typed and compiles for Ampere and later by default.
VENDOR_FLAGS: Mapping[str, tuple[str, ...]] = {
    "this_gpu": ("--stronglyTyped",),
    "ampere_plus": (),
    "sm75": ("--computeCapabilities=75",),
}


class Part(NamedTuple):
    """Name the files of one engine, each with its role: its plan, what 'samx build' makes, and what binds that."""

    title: str
    plan_file: str
    plan_role: str
    engine_file: str  # the vendor's own builder takes the same name
    engine_role: str
    stamp_file: str
    stamp_role: str


DECODER = Part(
    "decoder", "build.json", "build_plan", "decoder.engine", "engine", "engine.json", "engine_stamp",
)  # fmt: skip
ENCODER = Part(
    "image encoder", "encoder_build.json", "encoder_build_plan", "encoder.engine", "encoder_engine",
    "encoder_engine.json", "encoder_engine_stamp",
)  # fmt: skip
PARTS = (DECODER, ENCODER)

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
class EnginePlan(Document):
    """Describe how an engine is built: from which file, for which shapes and GPUs. Strongly typed, without TF32."""

    DERIVED = ("profile",)
    NOTES = ("command",)
    PART: ClassVar[Part]

    target: str
    model: FileName
    onnx_sha256: Sha256
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    compute: str

    @property
    def library(self) -> Library:
        """The library that builds and runs the engine."""
        return library_of(self.target)

    @property
    def ranges(self) -> Mapping[str, ShapeRange]:
        """The sizes of every dynamic axis."""
        raise NotImplementedError

    @property
    def profile(self) -> Mapping[str, Limits]:
        """Least, usual and most shape of every dynamic input."""
        return {port.name: self._limits(port) for port in self.inputs if port.is_dynamic}

    @property
    def fixed(self) -> Mapping[str, int]:
        """The dynamic axes that the engine has one size of, with that size."""
        return {axis: span.min for axis, span in self.ranges.items() if span.min == span.max}

    @property
    def command(self) -> str:
        """Command line of the vendor's own builder that makes the same engine."""
        words = [self.library.command, f"--onnx={self.model}", f"--saveEngine={self.PART.engine_file}"]
        words += ["--skipInference", "--noTF32", *VENDOR_FLAGS[self.compute]]
        for i, bound in enumerate(BOUNDS if self.profile else ()):
            shapes = [f"{name}:{'x'.join(map(str, limits[i]))}" for name, limits in self.profile.items()]
            words.append(f"--{bound}Shapes={','.join(shapes)}")
        return " ".join(words)

    def check(self, where: str) -> None:
        """Refuse a target that is unknown, and GPUs that it has no engines for."""
        check_compute(self.target, self.compute, where)

    def check_manifest(self, manifest: Manifest, where: str) -> None:
        """Refuse a plan that was made for another model.

        Raises: ArtifactError.
        """
        raise NotImplementedError

    def _limits(self, port: Port) -> Limits:
        spans = self.ranges
        if any(isinstance(size, str) and size not in spans for size in port.shape):
            raise ArtifactError(f"input {port.name} has an axis that no plan knows", found=port.shape, fix=REMEDY)
        sizes = [ShapeRange(size, size, size) if isinstance(size, int) else spans[size] for size in port.shape]
        return (tuple(size.min for size in sizes), tuple(size.opt for size in sizes), tuple(size.max for size in sizes))


@dataclass(frozen=True)
class BuildPlan(EnginePlan):
    """Describe how the engine of a decoder is built."""

    HEADER = {"format": "samx-build-plan", "schema_version": 1, "strongly_typed": True, "tf32": False}
    PART = DECODER

    prompts: ShapeRange
    points: ShapeRange

    @classmethod
    def of(
        cls, target: str, spec: DecoderSpec, model: str, onnx_sha256: str, prompts: ShapeRange, points: ShapeRange,
        turing: bool = False,
    ) -> BuildPlan:  # fmt: skip
        """Plan an engine of a decoder.

        Raises: UsageError for a target without engines, or one that has none for Turing alone.
        """
        compute, inputs, outputs = compute_of(target, turing), ports(spec.inputs), ports(spec.outputs)
        return cls(target, model, onnx_sha256, inputs, outputs, compute, prompts, points)

    @property
    def ranges(self) -> Mapping[str, ShapeRange]:
        """The sizes of every dynamic axis."""
        return {"prompts": self.prompts, "points": self.points}

    def check_manifest(self, manifest: Manifest, where: str) -> None:
        """Refuse a plan that was made for another decoder.

        Raises: ArtifactError.
        """
        self.check_spec(manifest.spec, where)

    def check_spec(self, spec: DecoderSpec, where: str) -> None:
        """Refuse a plan that was made for another decoder.

        Raises: ArtifactError.
        """
        if (self.inputs, self.outputs) != (ports(spec.inputs), ports(spec.outputs)):
            raise ArtifactError(f"{where} describes other tensors than the manifest's decoder", fix=REMEDY)


@dataclass(frozen=True)
class EncoderPlan(EnginePlan):
    """Describe how the engine of an image encoder is built."""

    HEADER = {"format": "samx-encoder-build-plan", "schema_version": 1, "strongly_typed": True, "tf32": False}
    PART = ENCODER

    pictures: ShapeRange

    @property
    def ranges(self) -> Mapping[str, ShapeRange]:
        """The sizes of every dynamic axis."""
        return {"pictures": self.pictures}

    def check_manifest(self, manifest: Manifest, where: str) -> None:
        """Refuse a plan that was made for another encoder.

        Raises: ArtifactError.
        """
        said, size = manifest.encoder, self.inputs[0].shape[1] if self.inputs else None
        names = [tensor.name for tensor in manifest.spec.image_inputs]
        if said is None or (said.pictures, said.picture_px) != (self.pictures, size):
            raise ArtifactError(f"{where} describes other pictures than the manifest's encoder", fix=REMEDY)
        if [port.name for port in self.outputs] != names:
            raise ArtifactError(f"{where} describes other tensors than the manifest's encoder", fix=REMEDY)


def compute_of(target: str, turing: bool) -> str:
    """Return what an engine is compiled for.

    Raises: UsageError for a target without engines, or one that has none for Turing alone.
    """
    library = library_of(target)
    if turing and "sm75" not in library.compute:
        raise UsageError(f"target '{target}' has no engines for Turing alone", fix="Build on the Turing GPU.")
    return "sm75" if turing else library.compute[0]


def ports(tensors: Sequence[TensorSpec]) -> tuple[Port, ...]:
    """Return what the specs say."""
    return tuple(Port.of(tensor) for tensor in tensors)


PLANS: Mapping[Part, type[EnginePlan]] = {DECODER: BuildPlan, ENCODER: EncoderPlan}


def read_plan(artifact: Artifact) -> BuildPlan:
    """Read the plan of an artifact's decoder.

    Raises: as read_plan_of().
    """
    plan = read_plan_of(artifact, DECODER)
    assert isinstance(plan, BuildPlan)
    return plan


def read_plans(artifact: Artifact) -> list[EnginePlan]:
    """Read the plans of all engines that an artifact shall have; an encoder without one is run otherwise.

    Raises: as read_plan_of().
    """
    roles = {entry.role for entry in artifact.manifest.files.values()}
    return [read_plan_of(artifact, part) for part in PARTS if part is DECODER or part.plan_role in roles]


def read_plan_of(artifact: Artifact, part: Part) -> EnginePlan:
    """Read how an engine is built, and compare it with the manifest.

    Raises: ArtifactError.
    """
    name = artifact.file_with_role(part.plan_role)
    where = f"{artifact.path / name}"
    plan = PLANS[part].from_bytes(artifact.read(name), where)
    plan.check_manifest(artifact.manifest, where)
    if plan.target != artifact.manifest.target:
        raise ArtifactError(
            f"{where} is for another target", found=plan.target, expected=artifact.manifest.target, fix="Export again."
        )
    return plan


def engine_file(artifact: Artifact, part: Part = DECODER) -> str:
    """Name an artifact's engine.

    Raises: ArtifactError when it has none yet.
    """
    if not any(entry.role == part.engine_role for entry in artifact.manifest.files.values()):
        what = "no engine" if part is DECODER else f"no engine of its {part.title}"
        raise ArtifactError(
            f"artifact {artifact.path} has {what} yet", fix=f"Build it on the device: samx build {artifact.path}"
        )
    return artifact.file_with_role(part.engine_role)
