"""Pack an artifact for a machine without samx: with samx.pyz, which is samx in one file; or write that alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samx import registry
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import Evidence
from samx.artifacts.store import Artifact
from samx.errors import ParityError, UsageError
from samx.kits.contents import contents
from samx.kits.pyz import pyz, zipped
from samx.processing.images import check_free
from samx.validators.report import ParityReport

FOLDER = "samx-kit"  # what unpacking leaves
PARITY_LEVELS = ("graph", "device")  # of the evidence that a comparison with PyTorch gave
REMEDY = "Export again: a kit measures what was shown to compute PyTorch's masks."


@dataclass(frozen=True)
class BundleResult:
    """What was written, and the devices of a kit; samx.pyz alone has none."""

    path: Path
    bytes: int
    sha256: str
    files: int
    devices: tuple[str, ...]

    def summary(self) -> str:
        """Return one line for people."""
        size = f"{self.bytes / 2**20:.1f} MiB" + (f", {self.files} files" if self.devices else "")
        todo = f"on the device: unzip it, cd {FOLDER}, read README.txt" if self.devices else "run it with python3"
        return f"wrote {self.path} ({size}); {todo}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {**asdict(self), "path": str(self.path), "devices": list(self.devices)}


def bundle(path: Path | None, output: Path, overwrite: bool = False) -> BundleResult:
    """Write a kit of an artifact, or without one samx.pyz alone. The same input gives the same bytes.

    Raises: WriteError when the output exists already or cannot be written; ArtifactError for an artifact that is
    altered or incomplete; ParityError for one without passed parity evidence; UsageError for a target that has no kit;
    MissingExtraError where reading the artifact needs a library; UnavailableError where samx.pyz cannot be made.
    """
    check_free(output, overwrite)
    if path is None:
        return _written(output, pyz(), 1, ())
    artifact = Artifact.open(path)
    require_parity(artifact)
    devices = require_kit(artifact.manifest.target)
    files = {f"{FOLDER}/{name}": data for name, data in contents(artifact).items()}
    return _written(output, zipped(files), len(files), devices)


def require_kit(target: str) -> tuple[str, ...]:
    """Return the devices that a target's kit is for, its own first.

    Raises: UsageError for a target that has no kit.
    """
    entry = registry.backend(target)
    if entry.kit is None:
        known = " or ".join(other.target for other in registry.BACKENDS if other.kit is not None)
        raise UsageError("there is no kit for this target", found=f"'{target}'", expected=known)
    return tuple(entry.kit)


def _written(output: Path, data: bytes, files: int, devices: tuple[str, ...]) -> BundleResult:
    write_file(output, data)
    return BundleResult(output, len(data), hashlib.sha256(data).hexdigest(), files, devices)


def require_parity(artifact: Artifact) -> None:
    """Refuse an artifact that nothing shows to compute PyTorch's masks, or that something shows not to.

    Raises: ParityError; ArtifactError for a report that cannot be read.
    """
    shown = [entry for entry in artifact.manifest.evidence if entry.level in PARITY_LEVELS]
    failed = _failed(artifact, shown)
    if not shown or failed:
        found = f"failed evidence {', '.join(failed)}" if failed else "no parity evidence"
        raise ParityError(f"{artifact.path} is not bundled", found=found, expected="a passed comparison", fix=REMEDY)


def _failed(artifact: Artifact, shown: Sequence[Evidence]) -> list[str]:
    """Return the reports that do not say what their evidence claims; the manifest's word is not enough."""
    reports = {
        entry.report: ParityReport.from_bytes(artifact.read(entry.report), f"{artifact.path}: {entry.report}")
        for entry in shown
    }
    claims = {entry.report: entry.passed for entry in shown}
    return [name for name, report in reports.items() if not (report.passed and claims[name])]
