"""An artifact's Core ML packages, read back and checked against its contract, and a runtime over their functions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError
from samx.formats.coreml.contract import Arrays, Contract, contract_of, functions_of
from samx.formats.coreml.package import PackageFiles, read_package
from samx.formats.coreml.program import Program, load_program
from samx.models.session import Feed, Outputs
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Padding, Runtime


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
