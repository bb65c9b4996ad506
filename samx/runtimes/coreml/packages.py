"""An artifact's Core ML packages, read back and checked against its contract, and a runtime over their functions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError
from samx.formats.coreml.contract import Arrays, Contract, contract_of, functions_of
from samx.formats.coreml.package import ENCODER, SINGLE_FUNCTION, PackageFiles, read_package
from samx.formats.coreml.program import Program, load_program
from samx.formats.coreml.tensors import TensorType
from samx.models.session import Feed, Outputs
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Padding, Runtime

CHANNELS = 3  # of a picture


@dataclass(frozen=True)
class OpenedPackages:
    """Collect the packages by folder, and what says how to call them."""

    contract: Contract
    functions: Mapping[int, str]  # by the rows of points that they take, fewest first
    padding: Padding
    files: Mapping[str, PackageFiles]
    programs: Mapping[str, Program]

    @property
    def image_place(self) -> tuple[str, str]:
        """A package and a function that take the image's tensors: all such functions take them alike."""
        return list(self.files)[-1], next(iter(self.functions.values()))

    def typed(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Convert arrays to the types that a package declares for a function's inputs."""
        types = {tensor.name: tensor.array_type for tensor in self.programs[folder].inputs(function)}
        return {name: value.astype(types[name], copy=False) for name, value in feed.items()}


def open_packages(artifact: Artifact) -> OpenedPackages:
    """Read every package that the artifact's contract names.

    Raises: MissingExtraError and UnavailableError without a fitting coremltools; ArtifactError when a package is
    missing, altered, or no decoder of the artifact's spec.
    """
    options, where, spec = artifact.manifest.options, str(artifact.path), artifact.manifest.spec
    contract, functions, padding = contract_of(options, where), functions_of(options, where), _padding(options, where)
    files = {one.folder: read_package(artifact, one.folder) for one in contract.signatures(spec)}
    programs = {folder: load_program(package, f"{where}/{folder}") for folder, package in files.items()}
    contract.check(programs, functions, spec, padding.prompts.max)
    return OpenedPackages(contract, functions, replace(padding, sizes=tuple(functions)), files, programs)


@dataclass(frozen=True)
class OpenedEncoder:
    """Hold the package of an image encoder, and what it takes and returns."""

    files: PackageFiles
    program: Program
    inputs: tuple[TensorType, ...]

    @property
    def takes_image(self) -> bool:
        """Whether the picture is an image of Core ML's: those come channels first."""
        return self.inputs[0].shape[1] == CHANNELS

    def feed(self, given: Mapping[str, NDArray[Any]]) -> Arrays:
        """Convert levels to what the package takes; an image's are rounded to bytes, as an app's images are.

        Shapes: picture (B, S, S, 3), and valid (B, 2) where the family pads.
        """
        feed = {tensor.name: given[tensor.name].astype(tensor.array_type) for tensor in self.inputs}
        if self.takes_image:
            feed["picture"] = np.ascontiguousarray(np.rint(feed["picture"]).transpose(0, 3, 1, 2))
        return feed


def open_encoder_package(artifact: Artifact) -> OpenedEncoder:
    """Read the package of an artifact's image encoder.

    Raises: as open_packages(), for a package that is no encoder of the artifact's spec.
    """
    manifest, where = artifact.manifest, f"{artifact.path}/{ENCODER}"
    files = read_package(artifact, ENCODER)
    program = load_program(files, where)
    entry, spec = manifest.encoder, manifest.spec
    assert entry is not None
    count, side = entry.pictures.max, entry.picture_px
    inputs, outputs = program.inputs(SINGLE_FUNCTION), program.outputs(SINGLE_FUNCTION)
    first = inputs[0].shape[1:2] == (CHANNELS,)
    wanted: dict[str, tuple[int, ...]] = {
        "picture": (count, CHANNELS, side, side) if first else (count, side, side, CHANNELS)
    }
    if spec.keeps_aspect:
        wanted["valid"] = (count, 2)
    for what, found, expected in (
        ("takes", inputs, wanted),
        ("returns", outputs, {tensor.name: (count, *tensor.shape[1:]) for tensor in spec.image_inputs}),
    ):
        if {tensor.name: tensor.shape for tensor in found} != expected:
            raise ArtifactError(
                f"the image encoder in {where} {what} other tensors than the manifest says",
                found="; ".join(map(str, found)), expected=str(expected), fix="Export it again.",
            )  # fmt: skip
    return OpenedEncoder(files, program, inputs)


def _padding(options: Mapping[str, Any], where: str) -> Padding:
    padding = Padding.of(options, where)
    if padding is None or padding.prompts.min != padding.prompts.max:
        raise ArtifactError(
            f"{where} has no fixed number of prompts", found=str(options.get("prompts"))[:80],
            expected="padded points, and one number of prompts", fix="Export it again.",
        )  # fmt: skip
    return padding


class PackagesRuntime(Runtime):
    """Fill prompts up to fixed shapes and call the functions that take these; subclasses say how one is called."""

    def __init__(self, spec: DecoderSpec, opened: OpenedPackages) -> None:
        super().__init__(spec, padding=opened.padding)
        self._opened = opened
        self._image: Arrays = {}

    @abstractmethod
    def call(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Call a package's function with arrays of exactly its shapes and types."""

    def _set_image(self, image: Feed) -> None:
        folder, function = self._opened.image_place
        self._image = self._opened.typed(folder, function, self._opened.contract.image(image))

    def _decode(self, prompts: Feed) -> Outputs:
        function = self._opened.functions[prompts["point_labels"].shape[1]]
        found = self._opened.contract.decode(self._typed_call, function, self._image, prompts)
        return {tensor.name: found[tensor.name].astype(np.float32) for tensor in self.spec.outputs}

    def _typed_call(self, folder: str, function: str, feed: Arrays) -> Arrays:
        return self.call(folder, function, self._opened.typed(folder, function, feed))
