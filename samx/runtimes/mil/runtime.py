"""Evaluate a Core ML artifact's MIL program in PyTorch: what the package computes, on a machine that is no Mac."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from samx.artifacts.store import Artifact
from samx.errors import UnavailableError
from samx.extras import require
from samx.formats.coreml.contract import Arrays
from samx.formats.coreml.library import LIBRARY, open_coremltools
from samx.formats.coreml.program import Program
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import DEFAULT_CHUNK, Runtime
from samx.runtimes.coreml.packages import OpenedPackages, open_packages

if TYPE_CHECKING:
    from samx.runtimes.mil.evaluate import Evaluator

DEVICE = "cpu"
PURPOSE = "evaluating a Core ML package"


def open_artifact(
    artifact: Artifact, device: str = DEVICE, threads: int | None = None, chunk: int = DEFAULT_CHUNK
) -> MilRuntime:
    """Open a verified artifact.

    Raises: MissingExtraError and UnavailableError without the libraries, or for another device; ArtifactError when the
    package holds no decoder of the artifact's spec.
    """
    if device != DEVICE:
        raise UnavailableError(
            "the MIL evaluator cannot run there", found=f"device '{device}'", expected=DEVICE,
            fix="Use --device cpu; the Neural Engine itself is on a Mac only.",
        )  # fmt: skip
    library = open_coremltools(PURPOSE)
    torch = require("torch", "export", PURPOSE)
    opened = open_packages(artifact)
    versions = {LIBRARY: str(library.__version__), "torch": str(torch.__version__)}
    return MilRuntime(artifact.manifest.spec, opened, versions, chunk, threads)


def devices() -> list[str]:
    """Name the devices that the evaluator runs on."""
    return [DEVICE]


class MilRuntime(Runtime):
    """Fill prompts up to fixed shapes and evaluate the functions that take these."""

    def __init__(
        self, spec: DecoderSpec, opened: OpenedPackages, versions: Mapping[str, str], chunk: int = DEFAULT_CHUNK,
        threads: int | None = None, packages: Packages | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, chunk, opened.padded)
        self._opened, self._versions, self._threads = opened, versions, threads
        self._packages = packages or Packages(opened.programs)
        self._image: Arrays = {}

    def placement(self) -> Placement:
        """Count the MIL operations of the functions that ran."""
        from samx.runtimes.mil.evaluate import ARITHMETIC

        details = {
            **self._versions,
            "functions": list(self._packages.ran),
            "counted": "MIL operations",
            "arithmetic": ARITHMETIC,
        }
        return Placement("mil", DEVICE, {DEVICE: sum(self._packages.ran.values())}, details)

    def _set_image(self, image: Feed) -> None:
        folder, function = self._opened.image_place
        self._image = self._packages.typed(folder, function, self._opened.contract.image(image))

    def _decode(self, prompts: Feed) -> Outputs:
        from samx.runtimes.mil.evaluate import limited_threads

        with limited_threads(self._threads):
            function = self._opened.functions.name(prompts["point_labels"].shape[1])
            found = self._opened.contract.decode(self._packages, function, self._image, prompts)
        return {tensor.name: found[tensor.name].astype(np.float32) for tensor in self.spec.outputs}


class Packages:
    """Call the functions of an artifact's packages; each is compiled when it is called for the first time."""

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = programs
        self._evaluators: dict[tuple[str, str], Evaluator] = {}

    def typed(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Give arrays the types that a package declares for a function's inputs."""
        types = {tensor.name: tensor.array_type for tensor in self._programs[folder].inputs(function)}
        return {name: value.astype(types[name], copy=False) for name, value in feed.items()}

    def __call__(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Evaluate one function with arrays of exactly its shapes."""
        return self._evaluator(folder, function)(self.typed(folder, function, feed))

    @property
    def ran(self) -> Mapping[str, int]:
        """Name the functions that ran, with the number of their MIL operations."""
        return {f"{folder}/{name}": evaluator.operations for (folder, name), evaluator in self._evaluators.items()}

    def _evaluator(self, folder: str, function: str) -> Evaluator:
        from samx.runtimes.mil.evaluate import Evaluator

        if (folder, function) not in self._evaluators:
            self._evaluators[folder, function] = Evaluator(self._programs[folder], function)
        return self._evaluators[folder, function]
