"""The INT8 part of an export: what calibrates it, what is quantised, and whether the result may be used."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.artifacts.commit import seal
from samx.artifacts.manifest import Manifest
from samx.artifacts.store import Artifact
from samx.errors import UsageError
from samx.models.session import Session
from samx.progress import Progress
from samx.quantization.search import Budget, QuantisationJob, Quantised, check_groups
from samx.registry import GRAPH_DEVICE, Backend, load

if TYPE_CHECKING:
    from samx.artifacts.draft import Draft
    from samx.exporters.base import Exported, ExportJob
    from samx.models.checkpoint import LoadedDecoder
    from samx.quantization.calibration import CalibrationSet
    from samx.quantization.held_out import HeldOut
    from samx.quantization.report import Int8Report

HELD_OUT = ("int8", "bf16")  # judged on prompts that a calibration set holds out
CACHE_SUFFIX = ".int8-search.json"
REPORT_FILE, REPORT_ROLE = "int8_report.json", "int8_report"
LEAST_IOU = 0.98  # the gate's; --min-iou may ask for more
P05_SHARE = 2.5  # the 5th percentile may lose so many times what the mean may: 0.95 beside 0.98
SPEED_PROMPTS = (1, 16)
SPEED_SECONDS = 2.0
HOW_TO_CALIBRATE = (
    "Make a calibration set first: samx calibrate CHECKPOINT --pictures DIR --encoder ENCODER.onnx -o set.npz "
    "(or --embeddings DIR), then --calibration set.npz."
)


@dataclass(eq=False)
class Int8:
    """Quantise what an exporter wrote, and judge it: the steps that an INT8 export takes beside the usual ones."""

    backend: Backend
    job: ExportJob
    checkpoint: Path
    calibration: CalibrationSet
    budget: Budget
    excluded: tuple[str, ...]  # groups that the user leaves in floating point
    cache_file: Path  # in which the search remembers what it judged, until the export is done
    progress: Progress
    quantised: Quantised | None = None
    held: HeldOut | None = None

    @classmethod
    def prepare(
        cls, backend: Backend, job: ExportJob, checkpoint: Path, given: CalibrationSet | None,
        excluded: tuple[str, ...], min_iou: float | None, out: Path, progress: Progress,
    ) -> Int8:  # fmt: skip
        """Take the calibration set that was given, or roll one out over demo scenes."""
        found = given or _roll_out(job.loaded, checkpoint, progress)
        cache_file = out.with_name(out.name + CACHE_SUFFIX)
        return cls(backend, job, checkpoint, found, _budget(min_iou), excluded, cache_file, progress)

    def quantise(self, exported: Exported, directory: Path) -> Exported:
        """Quantise an export in floating point as much as the budget allows.

        Raises: ParityError when it allows nothing.
        """
        assert self.backend.quantiser is not None
        job = QuantisationJob(
            self.job, exported, directory, self.calibration, self.budget, self.excluded, self.cache_file, self.progress
        )
        self.quantised = load(self.backend.quantiser)(job)
        done = self.quantised.exported
        return replace(done, options={**done.options, "int8": self._facts(self.quantised)})

    def hold_out(self, most_points: int | None) -> HeldOut:
        """Roll out prompts that did not calibrate.

        Raises: InputError when the calibration set left none.
        """
        from samx.quantization.held_out import held_out
        from samx.quantization.rollout import calibration_reference

        reference = calibration_reference(self.job.loaded)
        self.held = held_out(
            self.calibration, reference, self.checkpoint, self.job.spec, most_points=most_points,
            progress=self.progress,
        )  # fmt: skip
        return self.held

    def judge(self, made: Draft) -> Int8Report:
        """Compare a draft with PyTorch on every held-out prompt, and with the float export in speed.

        Raises: ParityError when it is not good enough, naming the group to exclude.
        """
        from samx.quantization.report import Int8Report
        from samx.quantization.verdict import judge

        assert self.quantised is not None
        assert self.held is not None
        self.progress("Comparing INT8 with PyTorch on held-out prompts")
        artifact = Artifact.open(made.directory)
        session = load(self.backend.runner(GRAPH_DEVICE).runtime)(artifact)
        verdict = judge(session, self._reference(), self.held, self.budget, made.subject)
        report = Int8Report(self.calibration.summary(), self.budget, self.quantised, verdict, (), None)
        report.enforce()
        self.cache_file.unlink(missing_ok=True)
        report = self._timed(report, artifact)
        report.save(made.directory / REPORT_FILE)
        made.add({REPORT_FILE: REPORT_ROLE}, notes=report.sentences())
        return report

    def _reference(self) -> Session:
        from samx.runtimes.torch import reference_session

        return reference_session(self.job.loaded, self.job.spec)

    def _timed(self, report: Int8Report, artifact: Artifact) -> Int8Report:
        if self.backend.graph is not None:
            reason = f"Speed was not measured: this export runs on {self.backend.needs}, not on what compared it here."
            return replace(report, no_speed=reason)
        self.progress("Measuring against the float export")
        return replace(report, speed=tuple(self._speeds(artifact)))

    def _speeds(self, artifact: Artifact) -> list[Mapping[str, Any]]:
        """Measure beside what the same command writes without --int8."""
        from samx.benchmarks.summary import compare_speed

        with tempfile.TemporaryDirectory(prefix="samx-float-") as folder:
            exported = self._floating(Path(folder), artifact.manifest)
            artifacts = {"float": exported, "int8": artifact}
            sessions: dict[str, Session] = {name: load(self.backend.runtime)(one) for name, one in artifacts.items()}
        sizes = {
            name: sum(one.manifest.files[n].bytes for n in exported.manifest.files) for name, one in artifacts.items()
        }
        image, prompts = self._question()
        for session in sessions.values():
            session.set_image(image)
        threads = int(sessions["int8"].placement().details["threads"])
        runs = {name: session.decode for name, session in sessions.items()}
        feeds = ({name: value.repeat(n, axis=0) for name, value in prompts.items()} for n in SPEED_PROMPTS)
        return [compare_speed(runs, feed, sizes, threads=threads, seconds=SPEED_SECONDS).to_json() for feed in feeds]

    def _floating(self, directory: Path, like: Manifest) -> Artifact:
        from samx.exporters.base import export_decoder

        exporter, job = importlib.import_module(self.backend.exporter), replace(self.job, precision="fp32")
        exported = export_decoder(exporter, job, directory)
        seal(directory, replace(like, precision="fp32", options=exported.options, evidence=()), exported.files)
        return Artifact.open(directory)

    def _question(self) -> tuple[Any, Any]:
        """Choose a box: two corners, as most prompts have."""
        sample = next((one for one in self.calibration.samples if one.kind == "box"), self.calibration.samples[0])
        return self.calibration.images[sample.image], sample.feed(self.job.spec)

    def _facts(self, done: Quantised) -> dict[str, Any]:
        """Give what the manifest remembers."""
        from samx.quantization.report import remedy

        found = done.found
        return {
            "integer": list(found.plan.integer), "stored": list(found.plan.stored), "gave_way": list(found.gave_way),
            "min_iou": self.budget.mean_iou, "calibration": self.calibration.summary(),
            "remedy": remedy(done, self.budget),
        }  # fmt: skip


def check_options(
    entry: Backend, precision: str, calibration: Path | None, exclude: Sequence[str], min_iou: float | None,
    own_embeddings: bool,
) -> None:  # fmt: skip
    """Refuse what belongs to INT8, or to what is judged like it, in another export, and the other way round.

    Raises: UsageError.
    """
    judged_as = entry.precisions[precision]
    quantised = {"--exclude": bool(exclude), "--min-iou": min_iou is not None} if judged_as != "int8" else {}
    calibrated = {"--calibration": calibration is not None} if judged_as not in HELD_OUT else {}
    foreign = [flag for flag, is_there in {**calibrated, **quantised}.items() if is_there]
    if foreign:
        raise UsageError("only INT8 is calibrated", found=f"{foreign[0]} with {precision}", expected="--int8")
    if judged_as in HELD_OUT and own_embeddings:
        raise UsageError(
            f"{precision} is judged on prompts that a calibration set holds out", found="--embedding",
            fix="Calibrate on them: samx calibrate CHECKPOINT --embeddings DIR -o set.npz",
        )  # fmt: skip
    _budget(min_iou)
    if exclude and entry.groups:
        check_groups(exclude, load(entry.groups))  # before minutes of work


def _budget(min_iou: float | None) -> Budget:
    mean = LEAST_IOU if min_iou is None else min_iou
    if not LEAST_IOU <= mean < 1:
        raise UsageError("this mean mask IoU cannot be asked for", found=f"--min-iou {mean:g}",
                         expected=f"{LEAST_IOU:g}, the gate's own bound, up to less than 1")  # fmt: skip
    return Budget(mean_iou=mean, p05_iou=1 - P05_SHARE * (1 - mean))


def _roll_out(loaded: LoadedDecoder, checkpoint: Path, progress: Progress) -> CalibrationSet:
    from samx.quantization.rollout import build_set, calibration_reference
    from samx.quantization.sources import SourceOptions, open_source

    source = open_source(SourceOptions(), checkpoint, loaded.spec, 0)
    return build_set(calibration_reference(loaded), loaded.sha256, source, progress=progress)


def given_set(loaded: LoadedDecoder, checkpoint: Path, path: Path | None) -> CalibrationSet | None:
    """Read the user's calibration set; none is needed for a demo model, whose scenes are known.

    Raises: UsageError; InputError for a set of another decoder.
    """
    from samx.demo.model import is_demo
    from samx.quantization.calibration import CalibrationSet

    if path is not None:
        found = CalibrationSet.load(path)
        found.check_for(loaded.spec, loaded.sha256)
        return found
    if not is_demo(checkpoint):
        raise UsageError("this precision needs a calibration set for this checkpoint", found="none",
                         fix=HOW_TO_CALIBRATE)  # fmt: skip
    return None


def held_out_prompts(
    job: ExportJob, checkpoint: Path, given: CalibrationSet | None, images: int, most_points: int | None,
    progress: Progress,
) -> HeldOut:  # fmt: skip
    """Return what judges a floating point export of eight bits: prompts on at most so many images.

    Raises: InputError when the calibration set holds nothing out.
    """
    from samx.quantization.held_out import held_out, held_out_scenes
    from samx.quantization.rollout import calibration_reference

    reference = calibration_reference(job.loaded)
    more: dict[str, Any] = {"most_points": most_points, "progress": progress}
    if given is None:
        return held_out_scenes(reference, checkpoint, job.spec, images=images, **more)
    return held_out(given, reference, checkpoint, job.spec, **more)
