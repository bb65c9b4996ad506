"""Pack an artifact for a machine without samx: with samx.pyz, which is samx in one file; or write that alone; or make
the folder that a Triton server serves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from samx import registry
from samx.artifacts.commit import write_file
from samx.artifacts.folder import write_folder
from samx.artifacts.manifest import Evidence
from samx.artifacts.store import Artifact
from samx.errors import ParityError, UsageError
from samx.files import MIB
from samx.kits.contents import contents
from samx.kits.pyz import pyz, zipped
from samx.kits.triton import FORMAT, LISTING, check_artifact, repository
from samx.processing.images import check_free
from samx.validators.report import ParityReport
from samx.web.folder import check_folder

FOLDER = "samx-kit"  # what unpacking leaves
SERVER = "triton"
REPOSITORY = (LISTING, FORMAT)
PARITY_LEVELS = ("graph", "device")  # of the evidence that a comparison with PyTorch gave
REMEDY = "Export again: a kit measures what was shown to compute PyTorch's masks."


def bundle(path: Path | None, output: Path, overwrite: bool = False) -> dict[str, Any]:
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


def bundle_triton(
    path: Path | None, output: Path, overwrite: bool = False, backend: str | None = None
) -> dict[str, Any]:
    """Write the model repository that a Triton server serves an artifact from.

    backend: Triton's own that computes; None: model.py does.

    Raises: UsageError without an artifact and for a target that Triton cannot hold; ArtifactError, for one without an
    image encoder too; ParityError; WriteError; UnavailableError; MissingExtraError where a graph has to be read.
    """
    if path is None:
        raise UsageError("no artifact is named", fix="Say which one: samx bundle DIR --for triton")
    check_folder(output, overwrite, REPOSITORY)
    artifact = Artifact.open(path)
    check_artifact(artifact, backend)
    require_parity(artifact)
    files = repository(artifact, backend)
    write_folder(output, files.items(), partial(check_folder, output, overwrite, REPOSITORY))
    size = sum(map(len, files.values()))
    summary = f"wrote {output} ({size / MIB:.1f} MiB); serve it with: tritonserver --model-repository={output}"
    return {"path": str(output), "bytes": size, "files": sorted(files), "summary": summary}


def require_server(name: str | None, backend: str | None = None) -> None:
    """Refuse a server that nothing is written for, and a backend without one.

    Raises: UsageError.
    """
    if name is None and backend is not None:
        raise UsageError("only a server has backends", found=f"--backend {backend}", fix=f"Add --for {SERVER}.")
    if name not in (None, SERVER):
        raise UsageError("nothing is written for this server", found=f"'{name}'", expected=SERVER)


def require_kit(target: str) -> tuple[str, ...]:
    """Return the devices that a target's kit is for, its own first.

    Raises: UsageError for a target that has no kit.
    """
    entry = registry.backend(target)
    if entry.kit is None:
        known = " or ".join(other.target for other in registry.BACKENDS if other.kit is not None)
        raise UsageError("there is no kit for this target", found=f"'{target}'", expected=known)
    return tuple(entry.kit)


def _written(output: Path, data: bytes, files: int, devices: tuple[str, ...]) -> dict[str, Any]:
    write_file(output, data)
    size = f"{len(data) / 2**20:.1f} MiB" + (f", {files} files" if devices else "")
    todo = f"on the device: unzip it, cd {FOLDER}, read README.txt" if devices else "run it with python3"
    return {
        "path": str(output), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "files": files,
        "devices": devices, "summary": f"wrote {output} ({size}); {todo}",
    }  # fmt: skip


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
