"""Finish an exported artifact on the device: build its engine, or name its code as trusted. Needs no torch, no onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samx.artifacts import trust as trusted
from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import Evidence, Manifest
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, ParityError
from samx.exporters.tensorrt.lower import BUILT_ROLES, REPORT_ROLE, gpu_for, lower, memory_bytes
from samx.formats import aoti as host
from samx.formats.tensorrt.library import library_of
from samx.formats.tensorrt.plan import EnginePlan, engine_file, read_plans
from samx.formats.tensorrt.stamp import Machine, Stamp, differs
from samx.progress import Progress, silent
from samx.registry import backend
from samx.validators.child import gate_in_child
from samx.validators.report import DEVICE_REPORT_FILE, PARITY_ROLE

# What an older engine showed; a new one shows it anew.
ENGINE_LEVELS = ("lowered", "device")


def build(path: Path, *, force: bool = False, memory: str | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Build the engines of a trt or trt-rtx artifact for this machine, unless those that are there belong here.

    memory: what a builder may use beside the weights, such as 6GiB.

    Raises: UsageError for another target; MissingExtraError, UnavailableError, ArtifactError, WriteError. The artifact
    is then as it was.
    """
    limit = memory_bytes(memory)
    artifact = Artifact.open(path)
    library_of(artifact.manifest.target)
    plans = read_plans(artifact)
    progress(f"Looking at {path}")
    reasons = ("asked for",) if force else _reasons(artifact, plans)
    if not reasons:
        return {
            "path": str(path), "built": False, "reasons": (), "seconds": 0.0, "warnings": (),
            "manifest": artifact.manifest.to_json(), "summary": f"{path} is up to date",
        }  # fmt: skip
    with staging(path, overwrite=True) as directory:
        kept = _copy_graph(artifact, directory)
        before = seal(directory, _without_engine(artifact.manifest), kept, known=artifact.manifest.files)
        lowered = lower(directory, before, progress, limit)
        tools, evidence = {**before.tools, **lowered.tools}, (*before.evidence, lowered.evidence)
        after = replace(before, tools=tools, evidence=evidence)
        manifest = seal(directory, after, {**kept, **lowered.files}, known=before.files)
        if lowered.suspected:
            shown = _compared(directory, manifest, progress)
            files = {**kept, **lowered.files, DEVICE_REPORT_FILE: PARITY_ROLE}
            manifest = seal(directory, replace(after, evidence=(*evidence, shown)), files, known=manifest.files)
    return {
        "path": str(path), "built": True, "reasons": reasons, "seconds": lowered.seconds, "warnings": lowered.warnings,
        "manifest": manifest.to_json(),
        "summary": f"built the engine of {path} in {lowered.seconds:.1f} s: {'; '.join(reasons)}",
    }  # fmt: skip


def trust(path: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Name the engine or the compiled package of an artifact as one that this user trusts to run as code.

    Raises: UsageError for another target; ArtifactError when it has no engine or was altered; WriteError.
    """
    artifact = Artifact.open(path)
    hashes = {
        name: artifact.manifest.files[name].sha256 for name in _code_files(artifact)
    }  # verified when it was opened
    for name, sha256 in hashes.items():
        progress(f"{path / name} has sha256 {sha256}")
        trusted.remember(sha256, f"named, at {path.absolute() / name}")
    name, sha256 = next(iter(hashes.items()))
    words = ", ".join(f"{path / name}, sha256 {sha256}" for name, sha256 in hashes.items())
    return {
        "path": str(path), "file": name, "sha256": sha256, "files": hashes, "summary": f"trusted from now on: {words}",
    }  # fmt: skip


def _code_files(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    if manifest.target == host.TARGET:
        encoder = [name for name, file in manifest.files.items() if file.role == host.ENCODER.role and manifest.encoder]
        return [artifact.file_with_role(host.PACKAGE_ROLE), *encoder]
    library_of(manifest.target)
    return [engine_file(artifact, plan.PART) for plan in read_plans(artifact)]


def _compared(directory: Path, manifest: Manifest, progress: Progress) -> Evidence:
    """Compare engines with PyTorch where they are known to be built wrongly, and write the report.

    Raises: ParityError with the report's first failure.
    """
    entry = backend(manifest.target)
    progress(f"Comparing with PyTorch on {entry.device}")
    report = gate_in_child(directory, level=entry.level(entry.device), device=entry.device)
    if not report.passed:
        fix = "This version builds wrong engines on this GPU: use another version of the library. Nothing was kept."
        raise ParityError(report.summary(), fix=fix, report=report)
    report.save(directory / DEVICE_REPORT_FILE)
    return report.evidence(DEVICE_REPORT_FILE)


def _reasons(artifact: Artifact, plans: Sequence[EnginePlan]) -> tuple[str, ...]:
    """Return why the engines must be built; nothing where those that are there belong to this machine and user."""
    roles = {entry.role for entry in artifact.manifest.files.values()}
    parts = [plan.PART for plan in plans]
    if not {REPORT_ROLE, *(role for part in parts for role in (part.engine_role, part.stamp_role))} <= roles:
        return ("there was none",)
    opened = plans[0].library.start()
    here = Machine.here(opened.version, gpu_for(plans[0]))
    return tuple(dict.fromkeys(reason for plan in plans for reason in _reasons_of(artifact, plan, here)))


def _reasons_of(artifact: Artifact, plan: EnginePlan, here: Machine) -> list[str]:
    stamp_name = artifact.file_with_role(plan.PART.stamp_role)
    sha256 = artifact.manifest.files[engine_file(artifact, plan.PART)].sha256
    try:
        stamp = Stamp.from_bytes(artifact.read(stamp_name), str(artifact.path / stamp_name))
    except ArtifactError as cause:
        return [cause.what]
    found = differs(stamp, here)
    if (stamp.target, stamp.compute, stamp.onnx_sha256) != (plan.target, plan.compute, plan.onnx_sha256):
        found.append("it was built from another graph or plan")
    if stamp.engine_sha256 != sha256:
        found.append("its stamp is of another engine")
    if not trusted.is_trusted(sha256):
        found.append("it was not built or named by this user")
    return found


def _without_engine(manifest: Manifest) -> Manifest:
    return replace(manifest, evidence=tuple(entry for entry in manifest.evidence if entry.level not in ENGINE_LEVELS))


def _copy_graph(artifact: Artifact, directory: Path) -> Mapping[str, str]:
    """Copy what does not depend on the engine; each file's hash is checked on the way."""
    reports = {entry.report for entry in artifact.manifest.evidence}
    outdated = reports - {entry.report for entry in _without_engine(artifact.manifest).evidence}
    roles = {}
    for name, entry in artifact.manifest.files.items():
        if entry.role not in BUILT_ROLES and name not in outdated:
            (directory / name).write_bytes(artifact.read(name))
            roles[name] = entry.role
    return roles
