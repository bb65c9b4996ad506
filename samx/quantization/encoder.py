"""The image encoder in INT8: calibrated on pictures, searched group by group, and refused where it does not pay."""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

from samx.artifacts.commit import seal, write_file
from samx.artifacts.manifest import ENCODER_ROLE, CheckpointEntry, EncoderEntry, Manifest
from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import Document
from samx.benchmarks.interleave import Candidate, Clock, Effort, measure, now_ns
from samx.benchmarks.summary import speedup
from samx.demo.scenes import generate_scene
from samx.errors import ParityError
from samx.exporters import onnx as onnx_exporter
from samx.exporters.base import Exported, ExportJob
from samx.models.graph import Graph
from samx.picture_encoder import RunLevels, encoder_inputs
from samx.processing.images import RgbArray, read_image
from samx.processing.resize import resized
from samx.progress import Progress, silent
from samx.quantization.encoder_graph import FILE, encoder_products, picture_limits, quantised_encoder
from samx.quantization.onnx_qdq import open_session
from samx.quantization.search import Budget, Found, Judged, Plan, Trial, search_halving
from samx.quantization.sources import (
    CALIBRATION_SCENES,
    DEFAULT_IMAGES,
    PICTURE_SUFFIXES,
    SCENE_HEIGHTS,
    choose_files,
)
from samx.registry import GRAPH_DEVICE, INT8, backend, load
from samx.validators.encoder_gate import mask_agreement, steady
from samx.validators.encoder_suite import EncoderSuite
from samx.validators.other_size import Sized

HELD_EVERY = 4  # pictures that judge the result, of all; the others calibrate
SEARCHED = 2  # of those that calibrate: each group is judged on them, and each run of an encoder takes seconds
LEAST_SPEEDUP = 1.2  # over float32, on this machine; less is not worth the masks
EFFORT = Effort(seconds=1.0, least=3, wanted=3, warm_up_calls=1)
CACHE_SUFFIX = ".encoder-int8-search.json"
INSTEAD = (
    "Nothing was written. Use '--encoder-precision fp32'; what INT8 gains depends on the processor, so that an export "
    "where the encoder is to run may come out otherwise."
)
REPORT_FILE, REPORT_ROLE = "encoder_int8_report.json", "encoder_int8_report"

Pictures = Sequence[tuple[str, RgbArray]]


@dataclass(frozen=True)
class EncoderInt8Report(Document):
    """Record what an encoder in INT8 was made from, and what it came to."""

    HEADER = {"format": "samx-encoder-int8-report", "schema_version": 1}
    NOTES = ("sentence",)

    source: str  # of the pictures
    calibrating: int
    held: int
    search: Found
    held_out: Judged
    speedup: float  # over float32, on the machine of the export

    @property
    def sentence(self) -> str:
        """Return the figures in words."""
        found, masks = self.search, self.held_out
        kept = f", in float32 {', '.join(found.gave_way)}" if found.gave_way else ""
        return (
            f"{self.speedup:.2f} times as fast as float32 here, mean mask IoU {masks.mean_iou:.4f}, 5th percentile "
            f"{masks.p05_iou:.4f} on {self.held} held-out pictures ({len(found.plan.integer)} groups in integers{kept})"
        )

    def enforce(self, budget: Budget) -> None:
        """Refuse an encoder that is not worth it.

        Raises: ParityError with the figures.
        """
        if self.speedup < LEAST_SPEEDUP or not all(map(budget.met, (self.search.judged, self.held_out))):
            raise ParityError(
                "INT8 does not pay for this image encoder", found=self.sentence,
                expected=f"{LEAST_SPEEDUP:g} times as fast, mean {budget.mean_iou:g}, 5th percentile "
                         f"{budget.p05_iou:g}", fix=INSTEAD,
            )  # fmt: skip


@dataclass(frozen=True)
class Int8Encoder:
    """Write an image encoder in INT8, in the place of an exporter's write_encoder()."""

    reference: Callable[[], Sized]  # in PyTorch, apart from what is exported
    budget: Budget
    folder: Path | None = None  # of pictures; None: demo scenes, for a demo model
    cache_file: Path | None = None
    progress: Progress = silent
    clock: Clock = now_ns

    def write(self, graph: Graph, job: ExportJob, directory: Path) -> Exported:
        """Quantise as much as the masks allow, and write it as the target runs it.

        Raises: ParityError with figures where it does not pay; ImageError for pictures that cannot be used.
        """
        with tempfile.TemporaryDirectory(prefix="samx-int8-") as folder:
            exported = onnx_exporter.write_encoder(graph, replace(job, precision="fp32"), Path(folder))
            reference = self.reference()
            photos, source = pictures(reference.picture_px, self.folder)
            held = photos[HELD_EVERY - 1 :: HELD_EVERY]
            calibrating = [photo for i, photo in enumerate(photos) if (i + 1) % HELD_EVERY]
            self.progress("Calibrating the image encoder")
            trial = EncoderTrial(Path(folder, FILE), job, reference, calibrating)
            found, gain = self._searched(trial)
            self.progress("Judging the image encoder on held-out pictures")
            judged = trial.compare(trial.opened(found.plan), trial.suite(held), found.judged.bytes)
            report = EncoderInt8Report(source, len(calibrating), len(held), found, judged, gain)
            report.enforce(self.budget)
            placed = trial.place(found.plan, directory)
        write_file(directory / REPORT_FILE, report.to_bytes())
        if self.cache_file is not None:
            self.cache_file.unlink(missing_ok=True)
        files = {**placed.files, REPORT_FILE: REPORT_ROLE}
        return replace(exported, files=files, tools={**exported.tools, **placed.tools}, notes=(
            f"The image encoder in INT8: {report.sentence}.",))  # fmt: skip

    def _searched(self, trial: EncoderTrial) -> tuple[Found, float]:
        """Find what may be in integers, and how much faster that is.

        All of it is measured first, and taken for the most that can be gained: too little ends it.
        """
        plan = Plan(integer=trial.groups)
        gain = self._gain(trial, plan)
        if gain < LEAST_SPEEDUP:
            return Found(plan, trial.judge(plan), trial.float_bytes, (), ()), gain
        found = search_halving(trial, plan, self.budget, self.cache_file, self.progress)
        return found, self._gain(trial, found.plan) if found.gave_way else gain

    def _gain(self, trial: EncoderTrial, plan: Plan) -> float:
        """Measure beside float32, in turns."""
        self.progress("Measuring the image encoder beside float32")
        runs = {"float32": trial.opened(Plan()), "int8": trial.opened(plan)}
        candidates = [Candidate(name, 1, run, lambda _: trial.feeds[0]) for name, run in runs.items()]
        return speedup(*measure(candidates, EFFORT, self.clock)).value


class EncoderTrial(Trial):
    """Make a plan's encoder, and judge it by the masks that the reference's decoder makes of its features."""

    def __init__(self, path: Path, job: ExportJob, reference: Sized, calibrating: Pictures) -> None:
        """Collect the ranges of all pictures, and ask the reference about the first."""
        self.path, self.job, self.reference = path, job, reference
        self.entry = EncoderEntry("trial", reference.picture_px, INT8, job.pictures)
        self.feeds = [encoder_inputs([photo], job.spec, self.entry) for _, photo in calibrating]
        found = encoder_products(onnx.load(str(path), load_external_data=False))
        self.groups = tuple(dict.fromkeys(product.group for product in found))
        self.multiply_adds = Counter()
        self.float_bytes = _bytes(path.parent)
        self.limits = picture_limits(path, self.feeds)
        self.searched = self.suite(calibrating[:SEARCHED])
        self.identity = {
            "files": {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in path.parent.iterdir()},
            "limits": self.limits, "pictures": [picture.digest for picture in self.searched.pictures],
            "libraries": {name: version(name) for name in ("onnx", "onnxruntime")},
        }  # fmt: skip

    def suite(self, photos: Pictures) -> EncoderSuite:
        """Ask the reference about pictures."""
        return EncoderSuite.build(self.reference.encode, self.reference.session, self.reference.picture_px, photos)

    def judge(self, plan: Plan) -> Judged:
        """Compare a plan's masks with the reference's, in ONNX Runtime: other targets compute the same integers."""
        with tempfile.TemporaryDirectory(prefix="samx-int8-") as folder:
            session, size = open_session(str(self._write(plan, Path(folder)))), _bytes(Path(folder))
        outputs = [output.name for output in session.get_outputs()]
        run: RunLevels = lambda feed: dict(zip(outputs, session.run(None, dict(feed)), strict=True))  # noqa: E731
        return self.compare(run, self.searched, size)

    def compare(self, run: RunLevels, suite: EncoderSuite, size: int) -> Judged:
        """Compare the masks of some pictures; those count that are steady in the reference."""
        found = []
        for i, picture in enumerate(suite.pictures):
            features = {name: value[:1] for name, value in run(suite.feed([i] * self.job.pictures.min)).items()}
            found.append(mask_agreement(picture, features, self.reference.session)[0])
        stability = [one.stability.ravel() for picture in suite.pictures for one in picture.answers]
        return Judged.of(np.concatenate(found)[np.concatenate(stability) >= steady(suite)].tolist(), size)

    def place(self, plan: Plan, directory: Path) -> Exported:
        """Write a plan's encoder into a directory as the target runs it."""
        placed: Exported
        with tempfile.TemporaryDirectory(prefix="samx-int8-") as folder:
            source = self._write(plan, Path(folder))
            placed = importlib.import_module(backend(self.job.target).exporter).place_encoder(source, directory, INT8)
        return placed

    def opened(self, plan: Plan) -> RunLevels:
        """Open a plan's encoder as the target runs it; nothing in integers is float32."""
        loaded, precision = self.job.loaded, INT8 if plan.integer else "fp32"
        opener, device = backend(self.job.target).encoder_opener(GRAPH_DEVICE)
        with tempfile.TemporaryDirectory(prefix="samx-int8-") as folder:
            files = self.place(plan, Path(folder)).files
            entry = replace(self.entry, precision=precision)
            manifest = Manifest(
                self.job.target, "fp32", self.job.spec, options={"encoder": entry.to_json()},
                checkpoint=CheckpointEntry(loaded.name, loaded.kind, loaded.sha256, loaded.bytes),
            )  # fmt: skip
            seal(Path(folder), manifest, files)
            run: RunLevels = load(opener)(Artifact.open(Path(folder)), device, None)
        return run

    def _write(self, plan: Plan, directory: Path) -> Path:
        path = directory / FILE
        onnx_exporter.save(quantised_encoder(self.path, plan.integer, self.limits), path, ENCODER_ROLE)
        return path


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def pictures(picture_px: int, folder: Path | None) -> tuple[Pictures, str]:
    """Return pictures to calibrate and judge on, none larger than an encoder sees it, and what they are in words.

    Raises: ImageError for a folder with too few, or one that cannot be read.
    """
    if folder is None:
        seeds = CALIBRATION_SCENES[:DEFAULT_IMAGES]
        heights = [round(picture_px * SCENE_HEIGHTS[i % len(SCENE_HEIGHTS)]) for i in range(len(seeds))]
        scenes = [generate_scene(seed, (picture_px, height)) for seed, height in zip(seeds, heights, strict=True)]
        return [(f"scene {seed}", scene.image) for seed, scene in zip(seeds, scenes, strict=True)], "demo scenes"
    files, words = choose_files(folder, PICTURE_SUFFIXES, "pictures")
    return [(path.name, reduced(read_image(path), picture_px)) for path in files], words


def reduced(photo: RgbArray, most_px: int) -> RgbArray:
    """Make a photo's longer side at most so many pixels."""
    height, width = photo.shape[:2]
    scale = min(most_px / max(height, width), 1.0)
    if scale == 1:
        return photo
    return resized(photo, max(round(width * scale), 1), max(round(height * scale), 1), floats=False).astype(np.uint8)
