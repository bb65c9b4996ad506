"""Build the engine of an artifact: read its plan and its graph, build, stamp, report, remember."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samx.artifacts import trust
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import Evidence, Lowered, Manifest, utc_now
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UnavailableError
from samx.exporters.tensorrt.build import Built, build_engine
from samx.formats.tensorrt.engine import check_engine, load_engine
from samx.formats.tensorrt.gpu import Gpu, find_gpu
from samx.formats.tensorrt.library import Opened, concerns, figures, summary
from samx.formats.tensorrt.plan import ENGINE_FILE, ENGINE_ROLE, BuildPlan, read_plan
from samx.formats.tensorrt.stamp import STAMP_FILE, STAMP_ROLE, Machine, Stamp

REPORT_FILE, REPORT_ROLE = "lowering.json", "lowering_report"
ROLES: Mapping[str, str] = {ENGINE_FILE: ENGINE_ROLE, STAMP_FILE: STAMP_ROLE, REPORT_FILE: REPORT_ROLE}
SHOWS = "the library's compiler accepted the graph with these tensors and profiles; nothing was run"

Progress = Callable[[str], None]


def lower(directory: Path, manifest: Manifest, progress: Progress = lambda _: None) -> Lowered:
    """Build the engine that a directory's build.json describes; the manifest lists what is there before.

    Raises: MissingExtraError, UnavailableError, ArtifactError, WriteError. Nothing was written then that seal() takes.
    """
    artifact = Artifact(directory, manifest)
    plan = read_plan(artifact)
    onnx = _model(artifact, plan)
    opened = plan.library.start()
    gpu = gpu_for(plan)
    progress(f"Building the {plan.library.title} {opened.version} engine")
    built = build_engine(onnx, plan, opened, None if plan.library.builds_without_gpu else gpu)
    engine_facts = _read_engine(built.engine, plan, opened, gpu, str(directory))
    stamp = _stamp(plan, built, gpu)
    report = {**_report(plan, built, stamp, len(onnx)), "engine": engine_facts}
    write_file(directory / ENGINE_FILE, built.engine)
    write_file(directory / STAMP_FILE, stamp.to_bytes())
    write_file(directory / REPORT_FILE, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    trust.remember(stamp.engine_sha256, f"built from {plan.model} {plan.onnx_sha256}")
    return Lowered(
        files=ROLES, evidence=_evidence(plan, built, stamp), tools={plan.library.module: built.version},
        seconds=built.seconds, warnings=tuple(concerns(built.messages)),
        opened=engine_facts["read_back"] is not None,
    )  # fmt: skip


def gpu_for(plan: BuildPlan) -> Gpu | None:
    """Look for the GPU; only a library that builds without one does without.

    Raises: UnavailableError.
    """
    try:
        return find_gpu()
    except UnavailableError:
        if plan.library.builds_without_gpu:
            return None
        raise


def _model(artifact: Artifact, plan: BuildPlan) -> bytes:
    onnx = artifact.read(plan.model)
    found = artifact.manifest.files[plan.model].sha256  # of these very bytes: read() has compared them
    if found != plan.onnx_sha256:
        raise ArtifactError(
            f"{artifact.path / plan.model} is not the file that was planned for", found=f"sha256 {found}",
            expected=plan.onnx_sha256, fix="Export again.",
        )  # fmt: skip
    return onnx


def _read_engine(engine: bytes, plan: BuildPlan, opened: Opened, gpu: Gpu | None, where: str) -> dict[str, Any]:
    """Read the engine back where a GPU lets us; where none is needed to build, say why it was not read."""
    if gpu is None:
        return {"read_back": None, "reason": "an engine is opened on a GPU only, and none is here"}
    try:
        _runtime, loaded = load_engine(engine, opened, where)  # the engine lives in the runtime
    except (ArtifactError, UnavailableError) as cause:
        if not plan.library.builds_without_gpu:
            raise
        return {"read_back": None, "reason": f"the engine does not open on this GPU: {cause.found}"}
    return {"read_back": check_engine(loaded, opened, plan, where).to_json(), "reason": None}


def _stamp(plan: BuildPlan, built: Built, gpu: Gpu | None) -> Stamp:
    machine = Machine.here(built.version, gpu if plan.library.binds else None)
    sha256 = hashlib.sha256(built.engine).hexdigest()
    return Stamp(plan.target, plan.compute, machine, plan.onnx_sha256, sha256, utc_now())


def _report(plan: BuildPlan, built: Built, stamp: Stamp, onnx_bytes: int) -> dict[str, Any]:
    return {
        "format": "samx-lowering-report",
        "schema_version": 1,
        "level": "lowered",
        "shows": SHOWS,
        "target": plan.target,
        "library": plan.library.title,
        "version": built.version,
        "os": stamp.machine.os,
        "gpu": stamp.machine.gpu,
        "compute": plan.compute,
        "seconds": round(built.seconds, 3),
        "onnx_bytes": onnx_bytes,
        "engine_bytes": len(built.engine),
        "engine_sha256": stamp.engine_sha256,
        "memory": figures(built.messages),
        "network": built.understood.to_json(),
        "log": summary(built.messages),
        "timing_cache": built.timing_cache,
    }


def _evidence(plan: BuildPlan, built: Built, stamp: Stamp) -> Evidence:
    return Evidence(
        level="lowered", report=REPORT_FILE, passed=True, runtime=f"{plan.library.title} {built.version}",
        device=stamp.machine.gpu or f"none, compiled for {plan.compute}", created=stamp.created,
    )  # fmt: skip
