"""Pack an artifact for another machine: with its questions and answers, and a program that needs no samx."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.artifacts.manifest import Evidence
from samx.artifacts.store import Artifact
from samx.errors import ParityError
from samx.kits.contents import contents, zipped
from samx.kits.places import places
from samx.processing.images import check_free
from samx.validators.report import ParityReport

FOLDER = "samx-kit"  # what unpacking leaves
PARITY_LEVELS = ("graph", "device")  # of the evidence that a comparison with PyTorch gave
REMEDY = "Export again: a kit measures what was shown to compute PyTorch's masks."


@dataclass(frozen=True)
class BundleResult:
    """Say what was written, and where it runs."""

    path: Path
    bytes: int
    sha256: str
    files: int
    devices: tuple[str, ...]

    def summary(self) -> str:
        """Give one line for people."""
        size = f"{self.bytes / 2**20:.1f} MiB, {self.files} files"
        return f"wrote {self.path} ({size}); on the device: unzip it, cd {FOLDER}, python3 run.py"

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        return {**asdict(self), "path": str(self.path), "devices": list(self.devices)}


def bundle(path: Path, output: Path, overwrite: bool = False) -> BundleResult:
    """Write a kit of an artifact. The same artifact gives the same bytes.

    Raises: WriteError when the output exists already or cannot be written; ArtifactError for an artifact that is
    altered or incomplete; ParityError for one without passed parity evidence; UsageError for a target that has no kit;
    MissingExtraError where reading the artifact needs a library.
    """
    check_free(output, overwrite)
    artifact = Artifact.open(path)
    require_parity(artifact)
    devices = places(artifact)
    files = {f"{FOLDER}/{name}": data for name, data in contents(artifact, devices).items()}
    data = zipped(files)
    write_file(output, data)
    return BundleResult(output, len(data), hashlib.sha256(data).hexdigest(), len(files), tuple(devices))


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
    """Name the reports that do not say what their evidence claims; the manifest's word is not enough."""
    reports = {
        entry.report: ParityReport.from_bytes(artifact.read(entry.report), f"{artifact.path}: {entry.report}")
        for entry in shown
    }
    claims = {entry.report: entry.passed for entry in shown}
    return [name for name, report in reports.items() if not (report.passed and claims[name])]
