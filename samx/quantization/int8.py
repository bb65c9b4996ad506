"""The INT8 part of an export: what calibrates it, what is quantised, and whether the result may be used."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.artifacts.commit import seal, write_file
from samx.artifacts.manifest import Manifest
from samx.artifacts.store import Artifact
from samx.errors import UsageError
from samx.models.session import Session
from samx.progress import Progress
from samx.quantization.calibration import CalibrationSet, fitted
from samx.quantization.search import Budget, QuantisationJob, Quantised, check_groups
from samx.quantization.verdict import Int8Report, remedy, verdict
from samx.registry import GRAPH_DEVICE, INT8, Backend, load

if TYPE_CHECKING:
    from samx.artifacts.draft import Draft
    from samx.exporters.base import ExportJob
    from samx.quantization.rollout import HeldOut

HELD_OUT = (INT8, "bf16")  # judged on prompts that a calibration set holds out
CACHE_SUFFIX = ".int8-search.json"
REPORT_FILE, REPORT_ROLE = "int8_report.json", "int8_report"
LEAST_IOU = 0.98  # the gate's; --min-iou may ask for more
P05_SHARE = 2.5  # the 5th percentile may lose so many times what the mean may: 0.95 beside 0.98
SPEED_PROMPTS = (1, 16)
SPEED_SECONDS = 2.0
HOW_TO_CALIBRATE = (
    "Make a calibration set first: samx calibrate CHECKPOINT --pictures DIR -o set.npz (an encoder that samx does not "
    "know: --encoder ENCODER.onnx, or --embeddings DIR), then --calibration set.npz."
)


def check_options(
    entry: Backend, precision: str, calibration: Path | None, exclude: Sequence[str], min_iou: float | None,
    own_embeddings: bool,
) -> None:  # fmt: skip
    """Refuse what belongs to INT8, or to what is judged like it, in another export, and the other way round.

    Raises: UsageError.
    """
    judged_as = entry.precisions[precision]
    quantised = {"--exclude": bool(exclude), "--min-iou": min_iou is not None} if judged_as != INT8 else {}
    calibrated = {"--calibration": calibration is not None} if judged_as not in HELD_OUT else {}
    foreign = [flag for flag, is_there in {**calibrated, **quantised}.items() if is_there]
    if foreign:
        raise UsageError("only INT8 is calibrated", found=f"{foreign[0]} with {precision}", expected="--int8")
    if judged_as in HELD_OUT and own_embeddings:
        raise UsageError(
            f"{precision} is judged on prompts that a calibration set holds out", found="--embedding",
            fix="Calibrate on them: samx calibrate CHECKPOINT --embeddings DIR -o set.npz",
        )  # fmt: skip
    budget(min_iou)
    if exclude and entry.groups:
        check_groups(exclude, load(entry.groups))


def check_encoder(precision: str, checkpoint: Path, pictures: Path | None, min_iou: float | None) -> None:
    """Refuse pictures that no encoder is calibrated on, and INT8 without them where nothing is known of the pictures.

    Raises: UsageError; ImageError for a folder that has too few.
    """
    from samx.demo.model import is_demo
    from samx.quantization.sources import PICTURE_SUFFIXES, choose_files

    budget(min_iou)
    if pictures is not None and precision != INT8:
        found, expected = f"--encoder-pictures with {precision}", "--encoder-precision int8"
        raise UsageError("only an image encoder in INT8 is calibrated on pictures", found=found, expected=expected)
    if pictures is None and precision == INT8 and not is_demo(checkpoint):
        raise UsageError("an image encoder in INT8 is calibrated on pictures", found="none",
                         fix="Name a folder of them: --encoder-pictures DIR; every fourth is held out.")  # fmt: skip
    if pictures is not None:
        choose_files(pictures, PICTURE_SUFFIXES, "pictures")  # told before minutes of work


def budget(min_iou: float | None) -> Budget:
    """Return what INT8 may cost where the mean mask IoU must be so much.

    Raises: UsageError.
    """
    mean = LEAST_IOU if min_iou is None else min_iou
    if not LEAST_IOU <= mean < 1:
        raise UsageError("this mean mask IoU cannot be asked for", found=f"--min-iou {mean:g}",
                         expected=f"{LEAST_IOU:g}, the gate's own bound, up to less than 1")  # fmt: skip
    return Budget(mean_iou=mean, p05_iou=1 - P05_SHARE * (1 - mean))


def calibration_set(
    job: ExportJob, judged_as: str, checkpoint: Path, path: Path | None, progress: Progress
) -> CalibrationSet | None:
    """Read the user's calibration set; for a demo model, whose scenes are known, roll one out where INT8 needs it.

    Raises: UsageError; InputError for a set of another decoder.
    """
    from samx.demo.model import is_demo
    from samx.quantization.rollout import build_set, calibration_reference
    from samx.quantization.sources import open_source

    loaded = job.loaded
    if path is not None:
        found = CalibrationSet.load(path)
        found.check_for(loaded.spec, loaded.sha256)
        return found
    if not is_demo(checkpoint):
        raise UsageError("this precision needs a calibration set for this checkpoint", found="none",
                         fix=HOW_TO_CALIBRATE)  # fmt: skip
    if judged_as != INT8:
        return None
    source = open_source(checkpoint, loaded.spec)
    return build_set(calibration_reference(loaded), loaded.sha256, source, progress=progress)


def held_out_prompts(
    job: ExportJob, checkpoint: Path, given: CalibrationSet | None, images: int, most_points: int | None,
    progress: Progress,
) -> HeldOut:  # fmt: skip
    """Return the prompts that judge an export of eight bits; without a set, on at most so many demo scenes.

    Raises: InputError when the calibration set holds nothing out.
    """
    from samx.quantization.rollout import calibration_reference, held_out, held_out_scenes

    reference = calibration_reference(job.loaded)
    more: dict[str, Any] = {"most_points": most_points, "progress": progress}
    if given is None:
        return held_out_scenes(reference, checkpoint, job.spec, images=images, **more)
    return held_out(given, reference, checkpoint, job.spec, **more)


def quantise(backend: Backend, job: QuantisationJob) -> Quantised:
    """Quantise an export in floating point as much as the budget allows.

    Raises: ParityError when it allows nothing.
    """
    assert backend.quantiser is not None
    done: Quantised = load(backend.quantiser)(job)
    facts = {
        "integer": list(done.found.plan.integer), "stored": list(done.found.plan.stored),
        "gave_way": list(done.found.gave_way), "min_iou": job.budget.mean_iou,
        "calibration": job.calibration.summary(), "remedy": remedy(done.found, job.budget),
    }  # fmt: skip
    return replace(done, exported=replace(done.exported, options={**done.exported.options, "int8": facts}))


def judge(backend: Backend, job: QuantisationJob, done: Quantised, held: HeldOut, made: Draft) -> Int8Report:
    """Compare a draft with PyTorch on every held-out prompt, and with the float export in speed.

    Raises: ParityError when it is not good enough, naming the group to exclude.
    """
    from samx.runtimes.torch import reference_session

    job.progress("Comparing INT8 with PyTorch on held-out prompts")
    artifact = Artifact.open(made.directory)
    session = load(backend.runner(GRAPH_DEVICE).runtime)(artifact)
    reference = reference_session(job.export.loaded, job.export.spec)
    found = verdict(session, reference, held, job.budget, made.subject)
    report = Int8Report(
        job.calibration.summary(), job.budget, done.found, done.arithmetic, found, {"measured": [], "reason": None}
    )
    report.enforce()
    if job.cache_file is not None:
        job.cache_file.unlink(missing_ok=True)
    report = replace(report, speed=_speed(backend, job, artifact))
    write_file(made.directory / REPORT_FILE, report.to_bytes())
    made.add({REPORT_FILE: REPORT_ROLE}, notes=report.sentences)
    return report


def _speed(backend: Backend, job: QuantisationJob, artifact: Artifact) -> dict[str, Any]:
    """Measure beside what the same command writes without --int8, on a box: two corners, as most prompts have."""
    from samx.benchmarks.summary import compare_speed

    if backend.graph is not None:
        reason = f"Speed was not measured: this export runs on {backend.needs}, not on what compared it here."
        return {"measured": [], "reason": reason}
    job.progress("Measuring against the float export")
    with tempfile.TemporaryDirectory(prefix="samx-float-") as folder:
        exported = _floating(backend, job.export, Path(folder), artifact.manifest)
        artifacts = {"float": exported, "int8": artifact}
        sessions: dict[str, Session] = {name: load(backend.runtime)(one) for name, one in artifacts.items()}
    sizes = {name: sum(one.manifest.files[n].bytes for n in exported.manifest.files) for name, one in artifacts.items()}
    case = next((one for one in job.calibration.samples if one.name == "box"), job.calibration.samples[0])
    for session in sessions.values():
        session.set_image(job.calibration.images[case.image])
    threads = int(sessions["int8"].placement().details["threads"])
    runs = {name: session.decode for name, session in sessions.items()}
    prompts = fitted(case.prompts, job.export.spec)
    feeds = ({name: value.repeat(n, axis=0) for name, value in prompts.items()} for n in SPEED_PROMPTS)
    compared = [compare_speed(runs, feed, sizes, threads=threads, seconds=SPEED_SECONDS) for feed in feeds]
    return {"measured": compared, "reason": None}


def _floating(backend: Backend, job: ExportJob, directory: Path, like: Manifest) -> Artifact:
    from samx.exporters.base import export_decoder

    exported = export_decoder(importlib.import_module(backend.exporter), replace(job, precision="fp32"), directory)
    seal(directory, replace(like, precision="fp32", options=exported.options, evidence=()), exported.files)
    return Artifact.open(directory)
