"""Evaluate a Core ML artifact's MIL program in PyTorch: what the package computes, on a machine that is no Mac."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.store import Artifact
from samx.extras import require
from samx.formats.coreml.contract import Arrays
from samx.formats.coreml.package import SINGLE_FUNCTION
from samx.formats.coreml.program import LIBRARY, open_coremltools
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import check_device
from samx.runtimes.coreml.packages import OpenedPackages, PackagesRuntime, open_encoder_package, open_packages

if TYPE_CHECKING:
    from samx.runtimes.mil.evaluate import Evaluator

DEVICE = "cpu"
PURPOSE = "evaluating a Core ML package"


def open_artifact(artifact: Artifact, device: str = DEVICE, threads: int | None = None) -> MilRuntime:
    """Open a verified artifact.

    Raises: MissingExtraError and UnavailableError without the libraries, or for another device; ArtifactError when the
    package holds no decoder of the artifact's spec.
    """
    check_device(device, [DEVICE], "the MIL evaluator cannot run there", "The Neural Engine itself is on a Mac only.")
    library = open_coremltools(PURPOSE)
    torch = require("torch", "export", PURPOSE)
    versions = {LIBRARY: str(library.__version__), "torch": str(torch.__version__)}
    return MilRuntime(artifact.manifest.spec, open_packages(artifact), versions, threads)


def open_encoder(
    artifact: Artifact, device: str = DEVICE, threads: int | None = None
) -> Callable[[Mapping[str, NDArray[Any]]], Feed]:
    """Open an artifact's own image encoder: a function from its inputs by name to its outputs by name.

    Raises: as open_artifact().
    """
    check_device(device, [DEVICE], "the MIL evaluator cannot run there", "The Neural Engine itself is on a Mac only.")
    require("torch", "export", PURPOSE)
    from samx.runtimes.mil.evaluate import Evaluator, limited_threads

    opened = open_encoder_package(artifact)
    evaluator = Evaluator(opened.program, SINGLE_FUNCTION)

    def encode(inputs: Mapping[str, NDArray[Any]]) -> Feed:
        with limited_threads(threads):
            found = evaluator(opened.feed(inputs))
        return {name: value.astype(np.float32, copy=False) for name, value in found.items()}

    return encode


def devices() -> list[str]:
    """Name the devices that the evaluator runs on."""
    return [DEVICE]


class MilRuntime(PackagesRuntime):
    """Fill prompts up to fixed shapes and evaluate the functions that take these; each is compiled once."""

    def __init__(
        self, spec: DecoderSpec, opened: OpenedPackages, versions: Mapping[str, str], threads: int | None = None
    ) -> None:  # fmt: skip
        super().__init__(spec, opened)
        self._versions, self._threads = versions, threads
        self._evaluators: dict[tuple[str, str], Evaluator] = {}

    def placement(self) -> Placement:
        """Count the MIL operations of the functions that ran."""
        from samx.runtimes.mil.evaluate import ARITHMETIC

        ran = {f"{folder}/{name}": one.operations for (folder, name), one in self._evaluators.items()}
        details = {**self._versions, "functions": list(ran), "counted": "MIL operations", "arithmetic": ARITHMETIC}
        return Placement("mil", DEVICE, {DEVICE: sum(ran.values())}, details)

    def call(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Evaluate one function.

        Raises: UnknownOperationError; ArtifactError naming the operation that cannot be computed.
        """
        from samx.runtimes.mil.evaluate import Evaluator

        if (folder, function) not in self._evaluators:
            self._evaluators[folder, function] = Evaluator(self._opened.programs[folder], function)
        return self._evaluators[folder, function](feed)

    def _decode(self, prompts: Feed) -> Outputs:
        from samx.runtimes.mil.evaluate import limited_threads

        with limited_threads(self._threads):
            return super()._decode(prompts)
