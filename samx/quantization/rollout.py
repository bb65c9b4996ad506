"""Roll prompts out over images: every kind in its share, with the float32 reference answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samx.errors import InputError, UsageError
from samx.models.checkpoint import LoadedDecoder
from samx.models.session import Feed, Session
from samx.progress import Progress, silent
from samx.quantization.calibration import (
    MIN_IMAGES,
    MIN_SAMPLES,
    CalibrationSet,
    Sample,
    calibration_spec,
    kinds,
    prompt_key,
)
from samx.quantization.sources import Source
from samx.quantization.user import User
from samx.runtimes.torch import reference_session
from samx.validators.metrics import BoolArray

DEFAULT_SAMPLES = 96  # the next prompt exceeds their ranges with a probability of 1 %
MOST_SAMPLES = 1024  # minutes, and ranges that have long stopped growing
HELD_OUT_SAMPLES = 48  # 144 masks of multimask exports: the 5th percentile is the eighth worst
HELD_OUT_SHARE = 4  # one in so many images is held out, where enough are left
FEWEST_HELD_OUT_IMAGES = 2
# A working reference answers nearly every prompt with a mask that has an outline.
LEAST_OUTLINED = 0.5

Hands = tuple[tuple[str, ...], ...]  # the kinds of prompts that each image is asked


@dataclass(frozen=True, eq=False)
class Rolled:
    """Keep a prompt, what was meant by it, and whether the reference answered with a mask that has an outline.

    Shapes: target (S, S).
    """

    sample: Sample
    target: BoolArray
    is_truth: bool
    outlined: bool


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
    rolled = [one for i, of_image in enumerate(found) for one in of_image[: len(calibrating[i])]]
    held_out = [one for i, of_image in enumerate(found) for one in of_image[len(calibrating[i]) :]]
    used = {prompt_key(one.sample) for one in rolled}
    return CalibrationSet(
        spec=reference.spec,
        images=tuple(features),
        samples=tuple(one.sample for one in rolled),
        held_out=tuple(one.sample for one in held_out if prompt_key(one.sample) not in used),
        scenes=source.scenes,
        source=f"{source.words}; {words}",
        seed=seed,
        checkpoint_sha256=checkpoint_sha256,
    )


def roll_out(
    reference: Session, source: Source, asked: Sequence[Sequence[str]], seeds: Sequence[Sequence[int]], what: str,
    progress: Progress,
) -> tuple[list[Feed], list[list[Rolled]]]:  # fmt: skip
    """Ask prompts of these kinds on each image; return the images' features, and the prompts on each.

    Raises: InputError when the answers are mostly empty or mostly the whole picture.
    """
    features: list[Feed] = []
    rolled: list[list[Rolled]] = []
    for i, make in enumerate(source.images):
        progress(f"Rolling out {what} prompts, image by image", i, len(source.images))
        image = make()
        user = User(reference, image, np.random.default_rng(seeds[i]))
        features.append(image.features)
        rolled.append([_roll(user, kind, i) for kind in asked[i]])
    check_outlined([one for of_image in rolled for one in of_image])
    return features, rolled


def deal(total: int, images: Sequence[int], count: int, seed: int) -> Hands:
    """Deal so many prompts, shuffled, to some of `count` images in turn."""
    shuffled = np.random.default_rng([seed, total]).permutation(kinds(total)).tolist()
    hands = {image: tuple(shuffled[i :: len(images)]) for i, image in enumerate(images)}
    return tuple(hands.get(image, ()) for image in range(count))


def check_outlined(rolled: Sequence[Rolled]) -> None:
    """Refuse answers that are mostly empty or mostly the whole picture.

    Raises: InputError.
    """
    outlined = sum(found.outlined for found in rolled)
    if outlined < LEAST_OUTLINED * len(rolled):
        raise InputError(
            "the reference answers most prompts with an empty or a full mask",
            found=f"{outlined} of {len(rolled)} masks with an outline", expected=f"at least {LEAST_OUTLINED:.0%}",
            fix="Check that checkpoint and images belong together, and how the encoder wants its pixels.",
        )  # fmt: skip


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


def _roll(user: User, kind: str, index: int) -> Rolled:
    region = user.region()
    question = user.ask(kind, region)
    mask = user.answer(question).mask
    outlined = bool(mask.any() and not mask[user.valid].all())
    return Rolled(Sample(kind, index, user.feed(question)), region.mask, user.knows_truth, outlined)
