"""What a plan's masks come to on calibration prompts, whatever computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from samx.models.session import Feed, Session
from samx.quantization.search import Judged
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray, mask_iou


def masks(session: Session, images: Sequence[Feed], cases: Sequence[Case]) -> Iterator[BoolArray]:
    """Decode cases, image by image. Shapes: -> (N, M, H*W) each, in the order of their images."""
    held: int | None = None
    for case in sorted(cases, key=lambda case: case.image):
        if case.image != held:
            session.set_image(images[case.image])
            held = case.image
        logits = session.decode(case.prompts)["low_res_masks"]
        yield (logits > session.spec.mask_threshold).reshape(*logits.shape[:2], -1)


def judged(found: Iterator[BoolArray], expected: Sequence[BoolArray], size: int) -> Judged:
    """Sum up how masks agree with the expected ones, in files of so many bytes."""
    pairs = zip(found, expected, strict=True)
    return Judged.of([float(iou) for a, b in pairs for iou in mask_iou(a, b).ravel()], size)
