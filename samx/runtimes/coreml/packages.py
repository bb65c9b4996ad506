"""An artifact's Core ML packages, read back and checked against its contract: what both runtimes start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError
from samx.formats.coreml.contract import Contract, contract_of
from samx.formats.coreml.functions import Functions
from samx.formats.coreml.package import PackageFiles, read_package
from samx.formats.coreml.program import Program, load_program
from samx.runtimes.base import PaddedShape


@dataclass(frozen=True)
class OpenedPackages:
    """Hold the packages by folder, and what says how to call them."""

    contract: Contract
    functions: Functions
    padded: PaddedShape
    files: Mapping[str, PackageFiles]
    programs: Mapping[str, Program]

    @property
    def image_place(self) -> tuple[str, str]:
        """Name a package and a function that take the image's tensors: all such functions take them alike."""
        return list(self.files)[-1], self.functions.name(self.functions.sizes[0])


def open_packages(artifact: Artifact) -> OpenedPackages:
    """Read every package that the artifact's contract names.

    Raises: MissingExtraError and UnavailableError without a fitting coremltools; ArtifactError when a package is
    missing, altered, or no decoder of the artifact's spec.
    """
    options, where, spec = artifact.manifest.options, str(artifact.path), artifact.manifest.spec
    contract, functions, padded = contract_of(options, where), Functions.of(options, where), _padded(options, where)
    files = {border.folder: read_package(artifact, border.folder) for border in contract.borders(spec)}
    programs = {folder: load_program(package, f"{where}/{folder}") for folder, package in files.items()}
    contract.check(programs, functions, spec, padded.prompts.max)
    return OpenedPackages(contract, functions, replace(padded, sizes=functions.sizes), files, programs)


def _padded(options: Mapping[str, Any], where: str) -> PaddedShape:
    padded = PaddedShape.of(options, where)
    if padded is None or padded.prompts.min != padded.prompts.max:
        raise ArtifactError(
            f"{where} has no fixed number of prompts", found=str(options.get("prompts"))[:80],
            expected="padded points, and one number of prompts", fix="Export it again.",
        )  # fmt: skip
    return padded
