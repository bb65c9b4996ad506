"""Build the engines that an artifact's plans describe, its decoder's and its encoder's, each stamped and hashed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from samx.artifacts import trust
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import ENCODER_ROLES, Evidence, Lowered, Manifest, utc_now
from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import plain
from samx.errors import ArtifactError, UnavailableError, UsageError, doubt
from samx.exporters.tensorrt.child import Built, Order, build_apart
from samx.formats.tensorrt.engine import check_engine, load_engine
from samx.formats.tensorrt.known_wrong import known_wrong
from samx.formats.tensorrt.library import Opened, concerns, figures, summary
from samx.formats.tensorrt.plan import DECODER, PARTS, EnginePlan, read_plans
from samx.formats.tensorrt.stamp import Gpu, Machine, Stamp, find_gpu

REPORT_FILE, REPORT_ROLE = "lowering.json", "lowering_report"
# Of what is built: everything else in an artifact is what it is built from.
BUILT_ROLES = (*(role for part in PARTS for role in (part.engine_role, part.stamp_role)), REPORT_ROLE)
HEADER = {
    "format": "samx-lowering-report", "schema_version": 1, "level": "lowered",
    "shows": "the library's compiler accepted the graph with these tensors and profiles; nothing was run",
}  # fmt: skip
MEMORY = re.compile(r"([1-9][0-9]{0,5})(KiB|MiB|GiB)", re.ASCII)
UNITS: Mapping[str, int] = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

Progress = Callable[[str], None]


class _Here(NamedTuple):
    """Bring together where engines are built, and for what."""

    artifact: Artifact
    opened: Opened
    gpu: Gpu | None
    machine: Machine
    memory: int | None


def memory_bytes(text: str | None) -> int | None:
    """Read a size such as 6GiB.

    Raises: UsageError.
    """
    found = None if text is None else MEMORY.fullmatch(text)
    if text is not None and found is None:
        raise UsageError("memory is no size", found=repr(text), expected="a whole number of KiB, MiB or GiB: 6GiB")
    return None if found is None else int(found[1]) * UNITS[found[2]]


def lower(
    directory: Path, manifest: Manifest, progress: Progress = lambda _: None, memory: int | None = None
) -> Lowered:
    """Build the engines that a directory's plans describe; the manifest lists what is there before.

    memory: bytes that a builder may use beside the weights; None: as many as it likes.
    Raises: MissingExtraError, UnavailableError, ArtifactError, WriteError. Nothing was written then that seal() takes.
    """
    artifact = Artifact(directory, manifest)
    plans = read_plans(artifact)
    library = plans[0].library
    opened, gpu = library.start(), gpu_for(plans[0])
    here = _Here(artifact, opened, gpu, Machine.here(opened.version, gpu if library.binds else None), memory)
    wrong = known_wrong(library, here.machine)
    for words in wrong:
        doubt(words)
    files: dict[str, str] = {REPORT_FILE: REPORT_ROLE}
    reports: dict[str, dict[str, Any]] = {}
    warned: list[str] = []
    for plan in plans:
        progress(f"Building the {library.title} {opened.version} engine of the {plan.PART.title}")
        built = build_apart(
            Order(directory / _model(artifact, plan), plan, None if library.builds_without_gpu else gpu, memory)
        )
        reports[plan.PART.title] = _written(built, plan, here)
        files |= {plan.PART.engine_file: plan.PART.engine_role, plan.PART.stamp_file: plan.PART.stamp_role}
        warned += concerns(built.messages)
    report = {
        **HEADER, **reports.pop(DECODER.title), "known_wrong": wrong,
        **{title.replace(" ", "_"): one for title, one in reports.items()},
    }  # fmt: skip
    write_file(directory / REPORT_FILE, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    runtime, device = f"{library.title} {opened.version}", here.machine.gpu or f"none, compiled for {plans[0].compute}"
    engines = [report["engine"], *(one["engine"] for one in reports.values())]
    return Lowered(
        files=files, evidence=Evidence("lowered", REPORT_FILE, True, runtime, device, utc_now()),
        tools={library.module: opened.version}, warnings=tuple(warned), suspected=bool(wrong),
        seconds=report["seconds"] + sum(one["seconds"] for one in reports.values()),
        opened=all(engine["read_back"] is not None for engine in engines),
    )  # fmt: skip


def _written(built: Built, plan: EnginePlan, here: _Here) -> dict[str, Any]:
    """Write an engine and its stamp, name it as trusted, and return what the report says of it."""
    part, machine, directory = plan.PART, here.machine, here.artifact.path
    facts = _read_engine(built.engine, plan, here.opened, here.gpu, str(directory))
    sha256 = hashlib.sha256(built.engine).hexdigest()
    stamp = Stamp(plan.target, plan.compute, machine, plan.onnx_sha256, sha256, utc_now())
    write_file(directory / part.engine_file, built.engine)
    write_file(directory / part.stamp_file, stamp.to_bytes())
    trust.remember(sha256, f"built from {plan.model} {plan.onnx_sha256}")
    return {
        "target": plan.target, "library": plan.library.title, "version": machine.version, "os": machine.os,
        "gpu": machine.gpu, "compute": plan.compute, "seconds": round(built.seconds, 3),
        "onnx_bytes": here.artifact.manifest.files[plan.model].bytes, "engine_bytes": len(built.engine),
        "engine_sha256": sha256, "memory_limit_bytes": here.memory, "memory": figures(built.messages),
        "network": built.understood, "log": summary(built.messages), "timing_cache": built.cache,
        "engine": facts,
    }  # fmt: skip


def gpu_for(plan: EnginePlan) -> Gpu | None:
    """Look for the GPU; only a library that builds without one does without.

    Raises: UnavailableError.
    """
    try:
        return find_gpu()
    except UnavailableError:
        if plan.library.builds_without_gpu:
            return None
        raise


def _model(artifact: Artifact, plan: EnginePlan) -> str:
    """Return the name of the file that is built from; its bytes, and those of weights beside it, are compared first."""
    beside = ENCODER_ROLES[1] if plan.PART is not DECODER else None
    for name in (plan.model, *(name for name, file in artifact.manifest.files.items() if file.role == beside)):
        artifact.read(name)
    found = artifact.manifest.files[plan.model].sha256
    if found != plan.onnx_sha256:
        raise ArtifactError(
            f"{artifact.path / plan.model} is not the file that was planned for", found=f"sha256 {found}",
            expected=plan.onnx_sha256, fix="Export again.",
        )  # fmt: skip
    return plan.model


def _read_engine(engine: bytes, plan: EnginePlan, opened: Opened, gpu: Gpu | None, where: str) -> dict[str, Any]:
    """Read the engine back where a GPU lets us; where none is needed to build, say why it was not read."""
    if gpu is None:
        return {"read_back": None, "reason": "an engine is opened on a GPU only, and none is here"}
    try:
        _runtime, loaded = load_engine(engine, opened, where)  # the engine lives in the runtime
    except (ArtifactError, UnavailableError) as cause:
        if not plan.library.builds_without_gpu:
            raise
        return {"read_back": None, "reason": f"the engine does not open on this GPU: {cause.found}"}
    return {"read_back": plain(check_engine(loaded, opened, plan, where)), "reason": None}
