"""Export a decoder, prove it, and leave it as an artifact; or leave nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Evidence, Manifest, utc_now
from samx.demo import demo_checkpoint
from samx.errors import ParityError, UnavailableError, UsageError
from samx.extras import require
from samx.models.session import Feed
from samx.models.spec import DecoderSpec, MaskChoice
from samx.processing.images import read_embedding
from samx.progress import Progress, silent
from samx.registry import Backend, backend, check_precision, load
from samx.validators.cases import default_frames, parity_cases
from samx.validators.child import SUITE_ROLE, gate_in_child
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

if TYPE_CHECKING:
    from samx.exporters.options import Exported, ExportJob, ExportOptions
    from samx.quantization.int8 import Int8
    from samx.quantization.report import Int8Report

SUITE_FILE, REPORT_FILE, REPORT_ROLE = "parity_cases.npz", "parity_report.json", "parity_report"
DEVICE_REPORT_FILE = "device_parity_report.json"
ENCODER_ROLE = "encoder"
# Enough to ask about every edge; each embedding is 2 MiB of the artifact (SAM 2: 8 MiB).
MOST_EMBEDDINGS = 4

NOTHING = "Nothing was written."
# What is left to do, by the device that a target is for.
FIRST_STEPS = {
    "cuda": "On the device: 'samx build {out}' builds the engine, {compare} compares it.",
    "cpu+ane": "On a Mac: {compare} runs the packages on the Neural Engine and compares them.",
}
AFTER_LOWERING = {
    "cuda": "On a machine with the GPU: {compare} runs the engine and compares it.",
    "cpu+ane": "On a Mac with a Neural Engine: {compare} runs the packages there and compares them.",
}
# What to try when an export differs, by an option that the target has.
REMEDIES = {
    "islands": f"{NOTHING} 'samx bisect' shows which operations to leave in float32 with --keep-float32.",
    "weights": f"{NOTHING} Store the weights less tightly, with --weights linear8 or without --weights.",
}


@dataclass(frozen=True)
class ExportRequest:
    """Say what to export, how, and where to."""

    out: Path
    checkpoint: Path | None = None  # None: the demo model of `family`
    family: str = "sam1"
    target: str = "onnx"
    precision: str = "fp32"
    masks: MaskChoice = "multimask"
    mask_input: bool = False
    image_size: int | None = None
    embeddings: Sequence[Path] = ()
    calibration: Path | None = None  # of int8, and what judges bf16; None: demo scenes, for a demo model
    overwrite: bool = False
    options: dict[str, object] = field(default_factory=dict)  # the fields of ExportOptions but precision


@dataclass(frozen=True)
class ExportResult:
    """Hold what was left at the target, and the report that let it stay."""

    path: Path
    manifest: Manifest
    report: ParityReport
    next_step: str | None = None  # what is left to do on the device
    notes: tuple[str, ...] = ()  # what people should read about the files
    int8: Int8Report | None = None


def export(request: ExportRequest, progress: Progress = silent) -> ExportResult:
    """Export, judge and commit; on any failure the target is as it was.

    Raises: UsageError, CheckpointError, ImageError, WriteError; ParityError when the export computes something else.
    """
    entry = backend(request.target)
    check_precision(entry, request.precision)
    for library in ("torch", "safetensors", "onnx"):
        require(library, "export", "export")
    entry.require_export()
    _check_options(request, entry)
    with staging(request.out, overwrite=request.overwrite) as directory:
        judged = _fill(request, entry, directory, progress)
        if entry.compiler is not None:
            judged = _compile(entry, judged, progress)
    next_step = _next_step(entry, judged.manifest, request.out)
    return ExportResult(request.out, judged.manifest, judged.report, next_step, judged.notes, judged.int8)


def _options(request: ExportRequest) -> ExportOptions:
    from samx.exporters.options import ExportOptions

    return ExportOptions(precision=request.precision, **request.options)  # type: ignore[arg-type]


def _check_options(request: ExportRequest, entry: Backend) -> None:
    from samx.quantization.int8 import check_options

    options = _options(request)
    options.refuse_foreign(entry.target, entry.options)
    check_options(entry, request.precision, request.calibration, options, bool(request.embeddings))


@dataclass(frozen=True)
class Judged:
    """Hold a sealed directory: its manifest, the role of every file, and the report on its graph."""

    directory: Path
    subject: str
    manifest: Manifest
    roles: dict[str, str]
    report: ParityReport
    notes: tuple[str, ...] = ()
    int8: Int8Report | None = None

    def with_evidence(self, evidence: Evidence, files: Mapping[str, str], tools: Mapping[str, str]) -> Judged:
        """Seal the directory with something more to show."""
        roles, manifest = {**self.roles, **files}, self.manifest
        more = replace(manifest, evidence=(*manifest.evidence, evidence), tools={**manifest.tools, **tools})
        return replace(self, manifest=seal(self.directory, more, roles), roles=roles)


def _compile(entry: Backend, judged: Judged, progress: Progress) -> Judged:
    """Build the engine where that can be done, and compare it with PyTorch where its device is.

    Raises: ParityError when the engine computes something else; else as the compiler.
    """
    devices = entry.here()
    if not devices and not entry.compiles_anywhere:
        return judged
    assert entry.compiler is not None
    try:
        lowered = load(entry.compiler)(judged.directory, judged.manifest, progress)
    except UnavailableError as cause:  # the graph holds, and this machine is only not the one that compiles it
        if entry.compiles_anywhere:
            raise
        return replace(judged, notes=(*judged.notes, f"Not compiled here: {cause}"))
    judged = judged.with_evidence(lowered.evidence, lowered.files, lowered.tools)
    for device in devices[:1] if lowered.opened else ():  # an RTX engine may be for another GPU than this one
        progress(f"Comparing the engine with PyTorch on {device}")
        report = gate_in_child(judged.directory, level="device", device=device, subject=judged.subject)
        judged = _with_report(judged, report, DEVICE_REPORT_FILE)
    return judged


def _next_step(entry: Backend, manifest: Manifest, out: Path) -> str | None:
    shown = {evidence.level for evidence in manifest.evidence}
    if entry.compiler is None or "device" in shown:
        return None
    compare = f"'samx validate {out} --device {entry.device}'"
    return (AFTER_LOWERING if "lowered" in shown else FIRST_STEPS)[entry.device].format(compare=compare, out=out)


def _fill(request: ExportRequest, entry: Backend, directory: Path, progress: Progress) -> Judged:
    """Write every file of the artifact into a directory that is not yet the target, and judge its graph."""
    from samx.exporters.options import ExportJob
    from samx.models.checkpoint import load_checkpoint

    checkpoint = request.checkpoint or demo_checkpoint(request.family)
    progress(f"Reading {checkpoint.name}")
    loaded = load_checkpoint(checkpoint, image_size=request.image_size)
    spec = replace(loaded.spec, masks=request.masks, mask_input=request.mask_input)
    _own_images(request, spec, MOST_EMBEDDINGS)  # what cannot be read is told before minutes of work

    steps = _steps(request, entry, ExportJob(loaded, spec, _options(request), entry.target), checkpoint, progress)
    progress(f"Exporting the {entry.title} graph")
    exported = steps.write(directory)
    roles = {**exported.files, **_own_encoder(checkpoint, spec, directory, progress), SUITE_FILE: SUITE_ROLE}

    steps.suite(exported, MOST_EMBEDDINGS).save(directory / SUITE_FILE)
    manifest = Manifest(
        target=entry.target, precision=request.precision, spec=spec, options=dict(exported.options),
        tools=dict(exported.tools),
        checkpoint=CheckpointEntry(loaded.name, loaded.kind, loaded.sha256, loaded.bytes),
    )  # fmt: skip
    progress("Comparing the export with PyTorch")
    subject = f"artifact {request.out.name}"
    manifest = seal(directory, manifest, roles)
    report = gate_in_child(directory, level="graph", subject=subject)
    judged = _with_report(Judged(directory, subject, manifest, roles, report, exported.notes), report, REPORT_FILE)
    return judged if isinstance(steps, FloatSteps) else _with_int8(judged, steps.judge(directory, subject))


@dataclass(frozen=True)
class FloatSteps:
    """Take an export's steps where its precision is a floating point one."""

    request: ExportRequest
    backend: Backend
    job: ExportJob
    checkpoint: Path
    progress: Progress

    def write(self, directory: Path) -> Exported:
        """Export."""
        exported: Exported = load(self.backend.exporter)(self.job, directory)
        return exported

    def suite(self, exported: Exported, most_images: int) -> ParitySuite:
        """Ask the reference about prompts of every kind that the export takes.

        Raises: UsageError, ImageError on the user's embeddings.
        """
        from samx.runtimes.torch import reference_session

        self.progress("Asking the PyTorch reference")
        spec = self.job.spec
        images, source = _images(self.request, spec, self.checkpoint, most_images)
        frames = default_frames(spec, len(images)) if images else None
        cases = parity_cases(spec, frames=frames, most_points=exported.most_points)
        return ParitySuite.build(reference_session(self.job.loaded, spec), images, cases, source)


@dataclass(frozen=True)
class HeldOutSteps(FloatSteps):
    """Take the steps of an export in bfloat16: as any other, but judged on the prompts that judge INT8."""

    def suite(self, exported: Exported, most_images: int) -> ParitySuite:
        """Roll prompts out, and ask the reference about them.

        Raises: UsageError without a calibration set for a checkpoint whose scenes are not known; InputError.
        """
        from samx.quantization.int8 import held_out_prompts
        from samx.runtimes.torch import reference_session

        held = held_out_prompts(
            self.job, self.checkpoint, self.request.calibration, most_images, exported.most_points, self.progress
        )
        self.progress("Asking the PyTorch reference")
        images, cases = held.stored(most_images)
        return ParitySuite.build(reference_session(self.job.loaded, self.job.spec), images, cases, held.source)


STEPS: Mapping[str, type[FloatSteps]] = {"bf16": HeldOutSteps}  # of the other floating point precisions: FloatSteps


def _steps(
    request: ExportRequest, entry: Backend, job: ExportJob, checkpoint: Path, progress: Progress
) -> FloatSteps | Int8:
    from samx.quantization.int8 import Int8

    if request.precision != "int8":
        return STEPS.get(request.precision, FloatSteps)(request, entry, job, checkpoint, progress)
    return Int8.prepare(entry, job, checkpoint, request.calibration, request.out, progress)


def _with_int8(judged: Judged, report: Int8Report) -> Judged:
    """Seal the directory with the report on INT8."""
    from samx.quantization.int8 import REPORT_FILE, REPORT_ROLE

    report.save(judged.directory / REPORT_FILE)
    roles = {**judged.roles, REPORT_FILE: REPORT_ROLE}
    manifest = seal(judged.directory, judged.manifest, roles)
    return replace(judged, manifest=manifest, roles=roles, int8=report, notes=(*judged.notes, *report.sentences()))


def _with_report(judged: Judged, report: ParityReport, file: str) -> Judged:
    """Seal the directory with a report as evidence.

    Raises: ParityError with the report's first failure.
    """
    if not report.passed:
        raise ParityError(report.summary(), fix=_remedy(judged.manifest), report=report)
    report.save(judged.directory / file)
    evidence = Evidence(
        level=report.level, report=file, passed=True, runtime=str(report.placement["runtime"]),
        device=str(report.placement["requested"]), created=utc_now(),
    )  # fmt: skip
    return replace(judged.with_evidence(evidence, {file: REPORT_ROLE}, {}), report=report)


def _remedy(manifest: Manifest) -> str:
    if "int8" in manifest.options:
        return str(manifest.options["int8"]["remedy"])
    if manifest.options.get("weights") is not None:
        return REMEDIES["weights"]
    has_islands = manifest.precision == "fp16" and "islands" in backend(manifest.target).options
    return REMEDIES["islands"] if has_islands else NOTHING


def _own_encoder(checkpoint: Path, spec: DecoderSpec, directory: Path, progress: Progress) -> dict[str, str]:
    """Export the encoder that a demo checkpoint carries; gives its file's role."""
    from samx.exporters.encoder import ENCODER_FILE, export_encoder, is_demo

    if not is_demo(checkpoint):
        return {}
    progress("Exporting the demo encoder")
    export_encoder(checkpoint, spec, directory)
    return {ENCODER_FILE: ENCODER_ROLE}


def _images(
    request: ExportRequest, spec: DecoderSpec, checkpoint: Path, most: int
) -> tuple[list[Feed] | None, str | None]:
    """Choose the embeddings to judge on: the user's, the demo scenes', or synthetic ones (None)."""
    from samx.exporters.encoder import demo_images, is_demo

    if own := _own_images(request, spec, most):
        return own, ", ".join(path.name for path in request.embeddings)
    return (demo_images(checkpoint, spec), "demo scenes, demo encoder") if is_demo(checkpoint) else (None, None)


def _own_images(request: ExportRequest, spec: DecoderSpec, most: int) -> list[Feed]:
    """Read the user's embeddings.

    Raises: UsageError for too many; ImageError.
    """
    paths = request.embeddings
    if len(paths) > most:
        raise UsageError("too many embeddings to judge on", found=len(paths), expected=f"at most {most}")
    return [read_embedding(path, spec) for path in paths]
