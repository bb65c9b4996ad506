"""Prove what an export left in its draft: its graph against PyTorch, and its engine where that can be built and run."""

from __future__ import annotations

from dataclasses import replace

from samx.artifacts.draft import Draft
from samx.artifacts.manifest import EncoderEntry, Level
from samx.errors import ParityError, UnavailableError
from samx.progress import Progress
from samx.registry import Backend, load
from samx.validators.child import gate_in_child
from samx.validators.report import DEVICE_REPORT_FILE, PARITY_ROLE, ParityReport

EXPORT_CALLS = 102  # that one session is asked at an export: some faults come after a hundred
NOTHING = "Nothing was written."


def compile_draft(made: Draft, entry: Backend, remedy: str, progress: Progress) -> ParityReport | None:
    """Build the engine where that can be done, and compare it with PyTorch where its device is.

    Raises: ParityError when the engine computes something else; else as the compiler.
    """
    devices = entry.here()
    if entry.compiler is None or (not devices and not entry.compiles_anywhere):
        return None
    try:
        lowered = load(entry.compiler)(made.directory, made.manifest, progress)
    except UnavailableError as cause:  # the graph holds, and this machine is only not the one that compiles it
        if entry.compiles_anywhere:
            raise
        made.notes.append(f"Not compiled here: {cause}")
        return None
    made.show(lowered.evidence, lowered.files, lowered.tools)
    if not devices or not lowered.opened:  # an RTX engine may be for another GPU than this one
        return None
    progress(f"Comparing the engine with PyTorch on {devices[0]}")
    return prove(made, "device", devices[0], DEVICE_REPORT_FILE, remedy)


def prove(made: Draft, level: Level, device: str, file: str, remedy: str) -> ParityReport:
    """Run the gate over a draft, and take its report up as evidence.

    Raises: ParityError with the report's first failure.
    """
    report = gate_in_child(made.directory, level=level, device=device, subject=made.subject, calls=EXPORT_CALLS)
    if not report.passed:
        raise ParityError(report.summary(), fix=advice(report, made.manifest.encoder, remedy), report=report)
    report.save(made.directory / file)
    made.show(report.evidence(file), {file: PARITY_ROLE})
    return report


def advice(report: ParityReport, encoder: EncoderEntry | None, remedy: str) -> str:
    """Return what to try: where the decoder is right, it is the image encoder that differs."""
    if encoder is None or not replace(report, encoder=None).passed:
        return remedy
    exact = "" if encoder.precision == "fp32" else "'--encoder-precision fp32' computes it in float32, "
    return f"{NOTHING} Of the image encoder: {exact}'--no-encoder' exports the decoder alone."
