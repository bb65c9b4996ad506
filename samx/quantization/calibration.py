"""CalibrationSet: the images and prompts from which INT8 takes its ranges. A set that exists can be used.

Its file is not compressed: float16 embeddings shrink by a sixth only, and the bytes, with them the hash, would depend
on the machine's version of zlib.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.commit import write_file
from samx.artifacts.strict_json import Count, shaped
from samx.errors import ArtifactError, ImageError, InputError, UsageError
from samx.files import read_file
from samx.models.session import Feed
from samx.models.spec import LABELS, DecoderSpec
from samx.validators.arrays import UNPACKED_CAP_BYTES, ArrayReader, feed_digest, frozen, pack, stored
from samx.validators.cases import Case

HEADER = {"format": "samx-calibration-set", "schema_version": 1}
SAMPLES = tuple[Annotated[dict[str, Any], shaped({"kind": str, "image": Count, "mask": bool})], ...]
FIELDS = {"spec": DecoderSpec, "source": str, "seed": Count, "checkpoint_sha256": str, "scenes": tuple[Count, ...],
          "images": Count, "samples": SAMPLES, "held_out": SAMPLES}  # fmt: skip
PARTS = ("samples", "held_out")

# A range is the largest value seen. Of n images drawn alike, the next one exceeds it with probability 1 / (n + 1):
# 20 % after 4 images, 4 % after 24 prompts. Ranges from fewer are cut off on a user's first pictures.
MIN_IMAGES, MIN_SAMPLES = 4, 24
MOST_IMAGES = 64  # SAM 2: 8 MiB each; another image would lower the probability above by 0.02 %
SERVES = (
    "family",
    "image_size",
    "patch_px",
    "frame",
    "width",
    "high_res_features",
    "interm_width",
)  # what images and prompts depend on
AGAIN = "Calibrate again with this checkpoint."
# One click, a box, several clicks on the object, clicks on it and beside it, a box with clicks, and a correction of an
# earlier mask. Not measured on users: clicks and boxes are what every interface has, so they are asked most.
SHARES: Mapping[str, float] = {
    "click": 0.25,
    "box": 0.2,
    "points": 0.15,
    "negative_points": 0.1,
    "box_and_points": 0.1,
    "refinement": 0.2,
}


def fits(case: Case, most_points: int | None) -> bool:
    """Return whether an export that takes so many points a prompt, padding counted, takes these."""
    return most_points is None or case.prompts["point_labels"].shape[1] <= most_points


def as_exported(cases: Sequence[Case], spec: DecoderSpec, most_points: int | None = None) -> list[Case]:
    """Return prompts as an export takes them, each under a name of its own; without those of too many points."""
    kept = [case for case in cases if fits(case, most_points)]
    return [Case(f"{case.name} {i}", case.image, fitted(case.prompts, spec)) for i, case in enumerate(kept)]


def kinds(total: int) -> list[str]:
    """Share so many prompts out between the kinds, the largest remainders rounded up."""
    exact = {kind: share * total for kind, share in SHARES.items()}
    counts = {kind: int(number) for kind, number in exact.items()}
    by_remainder = sorted(SHARES, key=lambda kind: counts[kind] - exact[kind])  # stable: ties in the order of SHARES
    for kind in by_remainder[: total - sum(counts.values())]:
        counts[kind] += 1
    return [kind for kind, count in counts.items() for _ in range(count)]


def fitted(prompts: Feed, spec: DecoderSpec) -> Feed:
    """Drop mask tensors that a decoder does not take, add zeros where it takes them and there are none.

    Shapes: DecoderSpec.prompt_inputs.
    """
    n, size = len(prompts["point_coords"]), spec.mask_size
    absent = {"mask_input": np.zeros((n, 1, size, size), np.float32), "has_mask_input": np.zeros(n, np.float32)}
    known = {**absent, **prompts}
    return {tensor.name: known[tensor.name] for tensor in spec.prompt_inputs}


def calibration_spec(spec: DecoderSpec) -> DecoderSpec:
    """Describe the decoder that answers calibration prompts: all masks, mask input; a set of it serves every export.

    Raises: UsageError for a family that takes no mask prompts.
    """
    if not spec.rules.takes_masks:
        raise UsageError(
            f"the decoder of {spec.rules.title} is not calibrated", found="a decoder without mask prompts",
            expected="float32 or float16", fix="Leave --int8 out.",
        )  # fmt: skip
    return replace(spec, masks="all", mask_input=True)


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Keep images, the prompts that calibrate, and the prompts that are held out to judge the result.

    A case is named after its kind; mask tensors are there only where a mask is used. Inputs are rounded to what the
    file keeps of them. `scenes` are the seeds of the demo scenes, where the images are
    those: fresh scenes judge them, and nothing is held out here.
    Raises: ImageError, InputError where ranges taken from it would mean nothing.
    """

    spec: DecoderSpec
    images: tuple[Feed, ...]
    samples: tuple[Case, ...]
    held_out: tuple[Case, ...]
    scenes: tuple[int, ...]
    source: str  # in words
    seed: int
    checkpoint_sha256: str  # of the weights that answered the prompts
    sha256: str = ""  # of the file; left empty, it is computed

    def __post_init__(self) -> None:
        checked = {
            "spec": calibration_spec(self.spec),
            "images": tuple(frozen(image) for image in self.images),
            "samples": _frozen(self.samples),
            "held_out": _frozen(self.held_out),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_images(self)
        _check_samples(self)
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.to_bytes()).hexdigest())

    def to_bytes(self) -> bytes:
        """Return the file's content; the same set gives the same bytes."""
        header = {
            **HEADER,
            "spec": self.spec.to_json(),
            "source": self.source,
            "seed": self.seed,
            "checkpoint_sha256": self.checkpoint_sha256,
            "scenes": list(self.scenes),
            "images": len(self.images),
            **{part: [_facts(case) for case in getattr(self, part)] for part in PARTS},
        }
        arrays: dict[str, NDArray[Any]] = {}
        for i, image in enumerate(self.images):
            arrays.update(stored(f"image{i}", image))
        for part in PARTS:
            for i, case in enumerate(getattr(self, part)):
                arrays.update(stored(f"{part}{i}", case.prompts))
        return pack(header, arrays, np.savez)

    def save(self, path: Path) -> int:
        """Write the set whole or not at all, and return its size in bytes.

        Raises: WriteError.
        """
        data = self.to_bytes()
        write_file(path, data)
        return len(data)

    @classmethod
    def load(cls, path: Path) -> CalibrationSet:
        """Read a set.

        Raises: ArtifactError for anything that save() would not have written; ImageError, InputError as when made.
        """
        data = read_file(path, UNPACKED_CAP_BYTES, f"calibration set '{path}'", ArtifactError)
        reader = ArrayReader(data, f"calibration set '{path}'")
        header = reader.header((HEADER, FIELDS))
        spec: DecoderSpec = header["spec"]
        images = tuple(reader.feed(f"image{i}", spec.image_inputs) for i in range(header.pop("images")))
        for part in PARTS:
            header[part] = tuple(_sample(reader, spec, f"{part}{i}", **one) for i, one in enumerate(header[part]))
        reader.finish()
        return cls(images=images, sha256=hashlib.sha256(data).hexdigest(), **header)

    def check_for(self, spec: DecoderSpec, checkpoint_sha256: str) -> None:
        """Refuse to calibrate another decoder than the one that answered the prompts.

        Raises: InputError naming both.
        """
        for name in SERVES:
            found, expected = getattr(self.spec, name), getattr(spec, name)
            if found != expected:
                what = f"calibration set is for another decoder ({name.replace('_', ' ')})"
                raise InputError(what, found=found, expected=expected, fix=AGAIN)
        if self.checkpoint_sha256 != checkpoint_sha256:
            raise InputError(
                "calibration set is for another checkpoint", found=f"sha256 {self.checkpoint_sha256}",
                expected=f"sha256 {checkpoint_sha256}", fix=AGAIN,
            )  # fmt: skip

    def cases(self, spec: DecoderSpec, most_points: int | None = None) -> list[Case]:
        """Return the prompts that calibrate, as an export takes them, without those of more points than it takes."""
        return as_exported(self.samples, spec, most_points)

    def summary(self) -> dict[str, Any]:
        """Return what a manifest remembers of the set."""
        return {
            "sha256": self.sha256,
            "checkpoint_sha256": self.checkpoint_sha256,
            "source": self.source,
            "seed": self.seed,
            "images": len(self.images),
            "samples": dict(Counter(case.name for case in self.samples)),
            "held_out": len(self.held_out),
        }


def check_features(features: Feed, spec: DecoderSpec, what: str) -> None:
    """Refuse features that no working encoder gives.

    Raises: ImageError naming the image: wrong names or shapes, values that are not finite, one value throughout.
    """
    expected = [tensor.name for tensor in spec.image_inputs]
    if sorted(features) != sorted(expected):
        raise ImageError(f"{what} has other features", found=", ".join(sorted(features)), expected=", ".join(expected))
    kept = frozen(features)
    for tensor in spec.image_inputs:
        value, name = kept[tensor.name], f"'{tensor.name}' of {what}"
        if value.shape != tensor.shape:
            fix = "Use this model's own encoder."
            raise ImageError(f"{name} has the wrong shape", found=value.shape, expected=tensor.shape, fix=fix)
        if not np.isfinite(value).all():
            fix = "Run the image encoder again, at fp32."
            raise ImageError(f"{name} is not finite", expected="values that float16 holds", fix=fix)
        if value.min() == value.max():
            fix = "Check the encoder, and what it was given."
            raise ImageError(f"{name} is constant", found=f"{value.min():g} throughout", fix=fix)


def prompt_key(case: Case) -> tuple[int, str]:
    """Identify a prompt: two cases with the same key are the same question."""
    return case.image, feed_digest(case.prompts)


def _facts(case: Case) -> dict[str, Any]:
    return {"kind": case.name, "image": case.image, "mask": "mask_input" in case.prompts}


def _sample(reader: ArrayReader, spec: DecoderSpec, prefix: str, kind: str, image: int, mask: bool) -> Case:
    return Case(kind, image, reader.feed(prefix, replace(spec, mask_input=mask).prompt_inputs))


def _frozen(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    return tuple(replace(case, prompts=frozen(case.prompts)) for case in cases)


def _check_images(found: CalibrationSet) -> None:
    if len(found.images) > MOST_IMAGES:
        expected = f"at most {MOST_IMAGES}"
        raise InputError("calibration set has too many images", found=len(found.images), expected=expected)
    first: dict[str, int] = {}
    for i, image in enumerate(found.images):
        check_features(image, found.spec, f"image {i} of the calibration set")
        twin = first.setdefault(feed_digest(image), i)
        if twin != i:
            fix = "Each must show something else: remove copies, check the encoder."
            raise InputError(f"images {twin} and {i} of the calibration set are the same", fix=fix)


def _check_samples(found: CalibrationSet) -> None:
    for case in (*found.samples, *found.held_out):
        _check_prompts(case, found)
    used = {prompt_key(case) for case in found.samples}
    _check_enough("images", len({image for image, _ in used}), MIN_IMAGES)
    _check_enough("different prompts", len(used), MIN_SAMPLES)
    if not used.isdisjoint(prompt_key(case) for case in found.held_out):
        raise InputError("a prompt of the calibration set both calibrates and judges", fix="Calibrate again.")


def _check_prompts(case: Case, of: CalibrationSet) -> None:
    """Refuse prompts that no predictor makes."""
    coords, labels = case.prompts["point_coords"], case.prompts["point_labels"]
    signs = {
        f"unknown kind '{case.name}'": case.name not in SHARES,
        f"image {case.image} of {len(of.images)}": not 0 <= case.image < len(of.images),
        "no prompt": coords.size == 0,
        "unknown labels": not np.isin(labels, list(LABELS.values())).all(),
        "points outside the frame": not ((coords >= 0) & (coords <= of.spec.image_size)).all(),
        "a mask with values that are not finite": not all(np.isfinite(one).all() for one in case.prompts.values()),
        "mask flags other than 0 and 1": not np.isin(case.prompts.get("has_mask_input", 0), (0, 1)).all(),
    }
    found = ", ".join(sign for sign, is_so in signs.items() if is_so)
    if found:
        raise InputError("a prompt of the calibration set is unusable", found=found, fix="Calibrate again.")


def _check_enough(what: str, found: int, least: int) -> None:
    if found < least:
        raise InputError(
            f"calibration set has too few {what}", found=found, expected=f"at least {least}",
            fix=f"A new one would exceed the ranges of so few with a probability of {1 / (found + 1):.0%}.",
        )  # fmt: skip


def magnitude(value: NDArray[Any], name: str) -> float:
    """Return the largest magnitude of a tensor that a calibration sample gave.

    Raises: InputError where it is not finite.
    """
    found = float(np.abs(value).max())
    if not np.isfinite(found):
        raise InputError(f"a calibration sample makes '{name}' not finite", fix="Calibrate again.")
    return found
