"""Finish an exported artifact on the device: build its engine, or name its code as trusted. Needs no torch, no onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samx.artifacts import trust as trusted
from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import Manifest
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError
from samx.exporters.tensorrt.build import REPORT_ROLE, gpu_for, lower
from samx.formats import aoti as host
from samx.formats.tensorrt.library import library_of
from samx.formats.tensorrt.plan import ENGINE_ROLE, BuildPlan, engine_file, read_plan
from samx.formats.tensorrt.stamp import STAMP_ROLE, Machine, Stamp, differs
from samx.progress import Progress, silent

ENGINE_ROLES = (ENGINE_ROLE, STAMP_ROLE, REPORT_ROLE)
# What an older engine showed; a new one shows it anew.
ENGINE_LEVELS = ("lowered", "device")


def build(path: Path, *, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Build the engine of a trt or trt-rtx artifact for this machine, unless the one that is there belongs here.

    Raises: UsageError for another target; MissingExtraError, UnavailableError, ArtifactError, WriteError. The artifact
    is then as it was.
    """
    artifact = Artifact.open(path)
    library_of(artifact.manifest.target)
    plan = read_plan(artifact)
    progress(f"Looking at {path}")
    reasons = ("asked for",) if force else _reasons(artifact, plan)
    if not reasons:
        return {
            "path": str(path), "built": False, "reasons": (), "seconds": 0.0, "warnings": (),
            "manifest": artifact.manifest.to_json(), "summary": f"{path} is up to date",
        }  # fmt: skip
    with staging(path, overwrite=True) as directory:
        kept = _copy_graph(artifact, directory)
        before = seal(directory, _without_engine(artifact.manifest), kept, known=artifact.manifest.files)
        lowered = lower(directory, before, progress)
        tools, evidence = {**before.tools, **lowered.tools}, (*before.evidence, lowered.evidence)
        after = replace(before, tools=tools, evidence=evidence)
        manifest = seal(directory, after, {**kept, **lowered.files}, known=before.files)
    return {
        "path": str(path), "built": True, "reasons": reasons, "seconds": lowered.seconds, "warnings": lowered.warnings,
        "manifest": manifest.to_json(),
        "summary": f"built the engine of {path} in {lowered.seconds:.1f} s: {'; '.join(reasons)}",
    }  # fmt: skip


def trust(path: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Name the engine or the compiled package of an artifact as one that this user trusts to run as code.

    Raises: UsageError for another target; ArtifactError when it has no engine or was altered; WriteError.
    """
    artifact = Artifact.open(path)  # which verifies every hash
    files = {name: artifact.manifest.files[name].sha256 for name in _code_files(artifact)}
    for name, sha256 in files.items():
        progress(f"{path / name} has sha256 {sha256}")
        trusted.remember(sha256, f"named, at {path.absolute() / name}")
    told = "; ".join(f"{path / name}, sha256 {sha256}" for name, sha256 in files.items())
    name = next(iter(files))  # the decoder's
    return {"path": str(path), "file": name, "sha256": files[name], "summary": f"trusted from now on: {told}"}


def _code_files(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    if manifest.target == host.TARGET:
        encoder = [name for name, file in manifest.files.items() if file.role == host.ENCODER.role and manifest.encoder]
        return [artifact.file_with_role(host.PACKAGE_ROLE), *encoder]
    library_of(manifest.target)
    return [engine_file(artifact)]


def _reasons(artifact: Artifact, plan: BuildPlan) -> tuple[str, ...]:
    """Return why the engine must be built; nothing where the one that is there belongs to this machine and user."""
    files = artifact.manifest.files
    roles = {entry.role: name for name, entry in files.items()}
    if not set(ENGINE_ROLES) <= set(roles):
        return ("there was none",)
    opened = plan.library.start()
    here = Machine.here(opened.version, gpu_for(plan))
    stamp_name, sha256 = roles[STAMP_ROLE], files[roles[ENGINE_ROLE]].sha256
    try:
        stamp = Stamp.from_bytes(artifact.read(stamp_name), str(artifact.path / stamp_name))
    except ArtifactError as cause:
        return (cause.what,)
    found = differs(stamp, here)
    if (stamp.target, stamp.compute, stamp.onnx_sha256) != (plan.target, plan.compute, plan.onnx_sha256):
        found.append("it was built from another graph or plan")
    if stamp.engine_sha256 != sha256:
        found.append("its stamp is of another engine")
    if not trusted.is_trusted(sha256):
        found.append("it was not built or named by this user")
    return tuple(found)


def _without_engine(manifest: Manifest) -> Manifest:
    return replace(manifest, evidence=tuple(entry for entry in manifest.evidence if entry.level not in ENGINE_LEVELS))


def _copy_graph(artifact: Artifact, directory: Path) -> Mapping[str, str]:
    """Copy what does not depend on the engine; each file's hash is checked on the way."""
    reports = {entry.report for entry in artifact.manifest.evidence}
    outdated = reports - {entry.report for entry in _without_engine(artifact.manifest).evidence}
    roles = {}
    for name, entry in artifact.manifest.files.items():
        if entry.role not in ENGINE_ROLES and name not in outdated:
            (directory / name).write_bytes(artifact.read(name))
            roles[name] = entry.role
    return roles
