"""Sample: what somebody asks about an image, by kind; and how often each kind is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samx.errors import InputError
from samx.models.session import Feed, FloatArray
from samx.models.spec import LABELS, DecoderSpec
from samx.validators.cases import Case

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


@dataclass(frozen=True, eq=False)
class Sample:
    """Keep prompts of one kind on one of the set's images; the mask tensors are there only where a mask is used."""

    kind: str
    image: int
    prompts: Feed

    def to_json(self) -> dict[str, Any]:
        """Return what a file's header says of it."""
        return {"kind": self.kind, "image": self.image, "mask": "mask_input" in self.prompts}

    def feed(self, spec: DecoderSpec) -> Feed:
        """Return what an export takes: no mask where it takes none, zeros where it takes one and there is none.

        Shapes: DecoderSpec.prompt_inputs.
        """
        return fitted(self.prompts, spec)

    def fits(self, most_points: int | None) -> bool:
        """Return whether an export that takes so many points a prompt, padding counted, takes these."""
        return most_points is None or self.prompts["point_labels"].shape[1] <= most_points

    def check(self, spec: DecoderSpec, images: int) -> None:
        """Refuse prompts that no predictor makes.

        Raises: InputError.
        """
        coords, labels = self.prompts["point_coords"], self.prompts["point_labels"]
        signs = {
            f"unknown kind '{self.kind}'": self.kind not in SHARES,
            f"image {self.image} of {images}": not 0 <= self.image < images,
            "no prompt": coords.size == 0,
            "unknown labels": not np.isin(labels, list(LABELS.values())).all(),
            "points outside the frame": not ((coords >= 0) & (coords <= spec.image_size)).all(),
            "a mask with values that are not finite": not all(_finite(value) for value in self.prompts.values()),
            "mask flags other than 0 and 1": not np.isin(self.prompts.get("has_mask_input", 0), (0, 1)).all(),
        }
        found = ", ".join(sign for sign, is_so in signs.items() if is_so)
        if found:
            raise InputError("a prompt of the calibration set is unusable", found=found, fix="Calibrate again.")


def as_cases(samples: Sequence[Sample], spec: DecoderSpec) -> list[Case]:
    """Make a case of each sample, as an export takes it."""
    return [Case(f"{sample.kind} {i}", sample.image, sample.feed(spec)) for i, sample in enumerate(samples)]


def kinds(total: int) -> list[str]:
    """Share so many prompts out between the kinds, the largest remainders rounded up."""
    exact = {kind: share * total for kind, share in SHARES.items()}
    counts = {kind: int(number) for kind, number in exact.items()}
    by_remainder = sorted(SHARES, key=lambda kind: counts[kind] - exact[kind])  # stable: ties in the order of SHARES
    for kind in by_remainder[: total - sum(counts.values())]:
        counts[kind] += 1
    return [kind for kind, count in counts.items() for _ in range(count)]


def fitted(prompts: Feed, spec: DecoderSpec) -> Feed:
    """Drop mask tensors that a decoder does not take, add zeros where it takes them and there are none."""
    n, size = len(prompts["point_coords"]), spec.mask_size
    absent = {"mask_input": np.zeros((n, 1, size, size), np.float32), "has_mask_input": np.zeros(n, np.float32)}
    known = {**absent, **prompts}
    return {tensor.name: known[tensor.name] for tensor in spec.prompt_inputs}


def _finite(value: FloatArray) -> bool:
    return bool(np.isfinite(value).all())
