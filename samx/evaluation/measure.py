"""Measure: each labelled object is asked for on two sides, and both answers are compared with its true mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from samx.evaluation.asking import Asking
from samx.evaluation.labels import LeftOut, Truth
from samx.evaluation.report import Answer, ObjectRow
from samx.evaluation.scores import overlap, score
from samx.evaluation.shown import Shown
from samx.models.session import Outputs, Session
from samx.picture_encoder import Encode, framed_features
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, read_image
from samx.processing.postprocess import BoolArray, best_indices, first_choice, picture_mask
from samx.processing.prompts import Prompt, decode_prompts
from samx.progress import Progress

TOGETHER = 64  # prompts whose low-resolution masks are in memory at a time: 48 MiB of three masks each
SIDES = ("pytorch", "artifact")


class Side(NamedTuple):
    """What makes a picture's features, and what decodes prompts on them."""

    encode: Encode
    session: Session

    def look(self, picture: RgbArray) -> Frame:
        """Take a picture; return its place in the decoder's frame."""
        ((frame, features),) = framed_features(self.encode, self.session.spec, [picture])
        self.session.set_image(features)
        return frame


@dataclass(frozen=True)
class Measurement:
    """Bring together what is asked, of whom, and what keeps pictures for the page."""

    sides: Mapping[str, Side]
    asking: Asking
    shown: Shown

    def run(
        self, pictures: Sequence[tuple[Path, list[Truth]]], left_out: LeftOut, progress: Progress
    ) -> list[ObjectRow]:
        """Measure every object; those that cannot be asked for are counted.

        Raises: ImageError; ParityError on outputs that are not finite.
        """
        rows: list[ObjectRow] = []
        for place, (path, truths) in enumerate(pictures):
            progress("Measuring pictures", place, len(pictures))
            asked = list(self._asked(path, truths, left_out))
            rows += self._of_picture(path, asked) if asked else []
        return rows

    def _asked(self, path: Path, truths: Sequence[Truth], left_out: LeftOut) -> Iterator[tuple[Truth, Prompt]]:
        for truth in truths:
            prompt = self.asking.make(truth.rle.mask(), f"{path.name}/{truth.name}")
            if prompt is None:
                left_out["no_prompt"] += 1
            else:
                yield truth, prompt

    def _of_picture(self, path: Path, asked: Sequence[tuple[Truth, Prompt]]) -> Iterator[ObjectRow]:
        picture = read_image(path)
        frames = {name: side.look(picture) for name, side in self.sides.items()}
        for start in range(0, len(asked), TOGETHER):
            part = asked[start : start + TOGETHER]
            prompts = [prompt for _, prompt in part]
            outputs = {name: decode_prompts(side.session, prompts, frames[name]) for name, side in self.sides.items()}
            for place, (truth, prompt) in enumerate(part):
                mask = truth.rle.mask()
                found = {
                    name: _answered(outputs[name], place, frames[name], side.session, mask)
                    for name, side in self.sides.items()
                }
                answers = {name: answer for name, (answer, _) in found.items()}
                masks = {"truth": mask, **{name: own for name, (_, own) in found.items()}}
                agreement = overlap(masks["pytorch"], masks["artifact"])
                row = ObjectRow(path.name, truth.name, truth.category, truth.rle.area_px, agreement, **answers)
                self.shown.offer(row, picture, prompt, masks)
                yield row


def _answered(
    outputs: Outputs, place: int, frame: Frame, session: Session, truth: BoolArray
) -> tuple[Answer, BoolArray]:
    """Choose a prompt's mask by the predicted IoU, as a user would, and say how good the best of all was."""
    spec = session.spec
    best, overlaps = int(best_indices(outputs, spec)[place]), {}
    for index in range(first_choice(spec), spec.masks_out):
        mask = picture_mask(outputs["low_res_masks"][place, index], frame, spec.mask_threshold)
        overlaps[index] = overlap(truth, mask)
        if index == best:
            chosen = mask
    own = score(truth, chosen)
    predicted = float(outputs["iou_predictions"][place, best])
    return Answer(own.iou, own.dice, own.boundary_iou, max(overlaps.values()), predicted), chosen
