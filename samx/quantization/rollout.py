"""Roll prompts out over images: those that calibrate, and those that judge and did not calibrate.

Every kind comes in its share, and the float32 reference answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samx.demo.model import is_demo
from samx.errors import InputError, UsageError
from samx.models.checkpoint import LoadedDecoder
from samx.models.session import Feed, Session
from samx.models.spec import DecoderSpec
from samx.progress import Progress, silent
from samx.quantization.calibration import (
    MIN_IMAGES,
    MIN_SAMPLES,
    CalibrationSet,
    as_exported,
    calibration_spec,
    fits,
    kinds,
    prompt_key,
)
from samx.quantization.sources import HELD_OUT_SCENES, Source, demo_scenes
from samx.quantization.user import User
from samx.runtimes.torch import reference_session
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray

DEFAULT_SAMPLES = 96  # the next prompt exceeds their ranges with a probability of 1 %
MOST_SAMPLES = 1024  # minutes, and ranges that have long stopped growing
HELD_OUT_SAMPLES = 48  # 144 masks of multimask exports: the 5th percentile is the eighth worst
HELD_OUT_SHARE = 4  # one in so many images is held out, where enough are left
FEWEST_HELD_OUT_IMAGES = 2
# A working reference answers nearly every prompt with a mask that has an outline.
LEAST_OUTLINED = 0.5

Hands = tuple[tuple[str, ...], ...]  # the kinds of prompts that each image is asked
Asked = tuple[Case, BoolArray | None]  # a prompt, and the mask (S, S) that is meant by it, where that is known


def calibration_reference(loaded: LoadedDecoder) -> Session:
    """Open the float32 reference that answers calibration prompts."""
    return reference_session(loaded, calibration_spec(loaded.spec))


def build_set(
    reference: Session, checkpoint_sha256: str, source: Source, *,
    samples: int = DEFAULT_SAMPLES, seed: int = 0, progress: Progress = silent,
) -> CalibrationSet:  # fmt: skip
    """Roll prompts out over a source's images. The same arguments give the same set, byte by byte.

    Raises: UsageError on a number of samples that cannot be; ImageError, InputError on images or answers that make
    ranges meaningless.
    """
    count = len(source.images)
    least = max(MIN_SAMPLES, count)
    if not least <= samples <= MOST_SAMPLES:
        raise UsageError(f"cannot calibrate {count} images with so many samples", found=samples,
                         expected=f"{least} to {MOST_SAMPLES}")  # fmt: skip
    calibrating, judging, words = _split(count, samples, seed, bool(source.scenes))
    asked = [(*first, *second) for first, second in zip(calibrating, judging, strict=True)]
    features, found = roll_out(reference, source, asked, [[seed, i] for i in range(count)], "calibration", progress)
    cases = [[case for case, _ in of_image] for of_image in found]
    used = tuple(case for i, of_image in enumerate(cases) for case in of_image[: len(calibrating[i])])
    keys = {prompt_key(case) for case in used}
    held_out = (case for i, of_image in enumerate(cases) for case in of_image[len(calibrating[i]) :])
    return CalibrationSet(
        spec=reference.spec,
        images=tuple(features),
        samples=used,
        held_out=tuple(case for case in held_out if prompt_key(case) not in keys),
        scenes=source.scenes,
        source=f"{source.words}; {words}",
        seed=seed,
        checkpoint_sha256=checkpoint_sha256,
    )


def roll_out(
    reference: Session, source: Source, asked: Sequence[Sequence[str]], seeds: Sequence[Sequence[int]], what: str,
    progress: Progress,
) -> tuple[list[Feed], list[list[Asked]]]:  # fmt: skip
    """Ask prompts of these kinds on each image; return the images' features, and the prompts on each.

    Raises: InputError when the answers are mostly empty or mostly the whole picture.
    """
    features: list[Feed] = []
    rolled: list[list[Asked]] = []
    outlined: list[bool] = []
    for i, make in enumerate(source.images):
        progress(f"Rolling out {what} prompts, image by image", i, len(source.images))
        image = make()
        user = User(reference, image, np.random.default_rng(seeds[i]))
        features.append(image.features)
        rolled.append([])
        for kind in asked[i]:
            region = user.region()
            question = user.ask(kind, region)
            _, mask = user.answer(question)
            outlined.append(bool(mask.any() and not mask[user.valid].all()))
            rolled[-1].append((Case(kind, i, user.feed(question)), region.mask if user.knows_truth else None))
    if sum(outlined) < LEAST_OUTLINED * len(outlined):
        raise InputError(
            "the reference answers most prompts with an empty or a full mask",
            found=f"{sum(outlined)} of {len(outlined)} masks with an outline",
            expected=f"at least {LEAST_OUTLINED:.0%}",
            fix="Check that checkpoint and images belong together, and how the encoder wants its pixels.",
        )  # fmt: skip
    return features, rolled


def deal(total: int, images: Sequence[int], count: int, seed: int) -> Hands:
    """Deal so many prompts, shuffled, to some of `count` images in turn."""
    shuffled = np.random.default_rng([seed, total]).permutation(kinds(total)).tolist()
    hands = {image: tuple(shuffled[i :: len(images)]) for i, image in enumerate(images)}
    return tuple(hands.get(image, ()) for image in range(count))


def _split(count: int, samples: int, seed: int, scenes: bool) -> tuple[Hands, Hands, str]:
    """Deal the prompts that calibrate and those that are held out; scenes are judged on other scenes.

    Held out are some of the images, or some of the prompts where the images are too few.
    """
    if scenes:
        return deal(samples, range(count), count, seed), ((),) * count, "judged on other scenes"
    apart = max(count // HELD_OUT_SHARE, FEWEST_HELD_OUT_IMAGES)
    everything: list[int] = np.random.default_rng([seed, count]).permutation(count).tolist()
    judging, calibrating = sorted(everything[:apart]), sorted(everything[apart:])
    words = f"{apart} images held out"
    if len(calibrating) < MIN_IMAGES:
        judging = calibrating = list(range(count))
        words = "too few images to hold one out, so other prompts on the same images are held out"
    return deal(samples, calibrating, count, seed), deal(HELD_OUT_SAMPLES, judging, count, seed), words


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
    kept = [one for of_image in rolled for one in of_image if fits(one[0], most_points)]
    truth = tuple(None if target is None else target[None] for _, target in kept)
    return HeldOut(tuple(features), tuple(as_exported([case for case, _ in kept], spec)), truth, source.words)


def _together(cases: Sequence[Case]) -> Iterator[Case]:
    """Join each image's prompts of its most usual number of points."""
    for image in sorted({case.image for case in cases}):
        sizes = [case.prompts["point_labels"].shape[1] for case in cases if case.image == image]
        usual = max(sizes, key=sizes.count)
        same = [case.prompts for case in cases if (case.image, case.prompts["point_labels"].shape[1]) == (image, usual)]
        joined = {name: np.concatenate([prompts[name] for prompts in same]) for name in same[0]}
        yield Case(f"together on image {image}", image, joined)


def _kept(calibration: CalibrationSet, spec: DecoderSpec, most_points: int | None) -> HeldOut:
    found = as_exported(calibration.held_out, spec, most_points)
    if not found:
        fix = "Calibrate again, on more images or with other prompts."
        raise InputError("calibration set holds no prompt out to judge the result on", fix=fix)
    used = sorted({case.image for case in found})
    cases = tuple(replace(case, image=used.index(case.image)) for case in found)
    images = tuple(calibration.images[i] for i in used)
    return HeldOut(images, cases, (None,) * len(cases), f"held out of {calibration.source}")
