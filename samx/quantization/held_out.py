"""Prompts that judge an INT8 or bfloat16 export: on images, or at least prompts, that did not calibrate it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samx.demo.model import is_demo
from samx.errors import InputError
from samx.models.session import Feed, Session
from samx.models.spec import DecoderSpec
from samx.progress import Progress, silent
from samx.quantization.calibration import CalibrationSet, Sample, as_cases
from samx.quantization.rollout import HELD_OUT_SAMPLES, deal, roll_out
from samx.quantization.sources import HELD_OUT_SCENES, demo_scenes
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Keep images, cases on them, and what each case asked for, where that is known.

    Shapes: truth (N, S, S) each, S mask pixels a side.
    """

    images: tuple[Feed, ...]
    cases: tuple[Case, ...]
    truth: tuple[BoolArray | None, ...]
    source: str

    def stored(self, most_images: int) -> tuple[list[Feed], list[Case]]:
        """Return what an artifact takes along: some images, their cases, and some of those again in one call."""
        cases = [case for case in self.cases if case.image < most_images]
        return list(self.images[:most_images]), [*cases, *_together(cases)]


def held_out(
    calibration: CalibrationSet, reference: Session, checkpoint: Path, spec: DecoderSpec, *,
    most_points: int | None = None, progress: Progress = silent,
) -> HeldOut:  # fmt: skip
    """Return what judges an export of `spec` that was calibrated with a set.

    A set of demo scenes is judged on other scenes, whose regions are known; `reference` (calibration_reference) answers
    what corrections start from. Any other set holds prompts out itself, and knows no truth.
    Raises: InputError when nothing that did not calibrate is left.
    """
    if not calibration.scenes:
        return _kept(calibration, spec, most_points)
    if not is_demo(checkpoint) or not set(calibration.scenes).isdisjoint(HELD_OUT_SCENES):
        raise InputError(
            "calibration set cannot be judged on demo scenes", found=f"scenes {sorted(calibration.scenes)}",
            expected=f"a demo checkpoint and none of {HELD_OUT_SCENES[0]} to {HELD_OUT_SCENES[-1]}",
            fix="Calibrate again with this checkpoint.",
        )  # fmt: skip
    return held_out_scenes(reference, checkpoint, spec, calibration.seed, most_points=most_points, progress=progress)


def held_out_scenes(
    reference: Session, checkpoint: Path, spec: DecoderSpec, seed: int = 0, *, images: int | None = None,
    most_points: int | None = None, progress: Progress = silent,
) -> HeldOut:  # fmt: skip
    """Return prompts on demo scenes that never calibrate, whose regions are known; on so many of them, or on all."""
    source = demo_scenes(checkpoint, reference.spec, HELD_OUT_SCENES[:images])
    count = len(source.images)
    asked = deal(HELD_OUT_SAMPLES, range(count), count, seed)
    seeds = [[seed, scene] for scene in source.scenes]
    features, rolled = roll_out(reference, source, asked, seeds, "held-out", progress)
    kept = [found for of_image in rolled for found in of_image if found.sample.fits(most_points)]
    truth = tuple(found.target[None] if found.is_truth else None for found in kept)
    return HeldOut(tuple(features), tuple(as_cases([found.sample for found in kept], spec)), truth, source.words)


def _together(cases: Sequence[Case]) -> Iterator[Case]:
    """Join each image's prompts of its most usual number of points."""
    for image in sorted({case.image for case in cases}):
        sizes = [case.prompts["point_labels"].shape[1] for case in cases if case.image == image]
        usual = max(sizes, key=sizes.count)
        same = [case.prompts for case in cases if (case.image, case.prompts["point_labels"].shape[1]) == (image, usual)]
        joined = {name: np.concatenate([prompts[name] for prompts in same]) for name in same[0]}
        yield Case(f"together on image {image}", image, joined)


def _kept(calibration: CalibrationSet, spec: DecoderSpec, most_points: int | None) -> HeldOut:
    samples = [sample for sample in calibration.held_out if sample.fits(most_points)]
    if not samples:
        fix = "Calibrate again, on more images or with other prompts."
        raise InputError("calibration set holds no prompt out to judge the result on", fix=fix)
    used = sorted({sample.image for sample in samples})
    moved: list[Sample] = [replace(sample, image=used.index(sample.image)) for sample in samples]
    images = tuple(calibration.images[i] for i in used)
    return HeldOut(images, tuple(as_cases(moved, spec)), (None,) * len(moved), f"held out of {calibration.source}")
