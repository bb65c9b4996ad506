"""The gate of an image encoder: from a picture's bytes to its features, and on to the masks of the artifact's decoder.

The masks decide. Which masks count is the reference's doing: those that are steady, because a mask that a small change
of its threshold changes says nothing about an encoder; what all masks give is reported beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

import numpy as np

from samx.errors import ParityError
from samx.models.session import Feed, FloatArray, Outputs, Session
from samx.processing.frames import Frame
from samx.processing.images import RgbArray
from samx.validators.asked import message
from samx.validators.encoder_suite import Encode, EncoderSuite, Picture, image_outputs
from samx.validators.metrics import LOW_PERCENTILE, EncoderBounds, mask_iou
from samx.validators.pictures import resizing_problems
from samx.validators.report import CaseResult, EncoderReport
from samx.validators.sketch import difference
from samx.validators.suite import output_problems, tensor_problems

STEADY = 0.9  # stability from which a mask counts
STEADY_SHARE = 1 / 3  # of the masks count at least, the steadiest first
NONE: FloatArray = np.zeros(0, np.float32)  # of a picture whose masks could not be compared

Resize = Callable[[RgbArray, Frame], RgbArray]  # a user's picture to an encoder's square


def judge_encoder(
    encode: Encode, session: Session, suite: EncoderSuite, bounds: EncoderBounds, *,
    batches: Sequence[int] = (1,), resize: Resize | None = None,
) -> EncoderReport:  # fmt: skip
    """Ask the encoder about every picture, in each number of pictures a call, and the decoder about its features.

    Failures of either are findings, never exceptions. `resize` is judged too, where it is given.
    """
    judge = _Judge(_Asked(encode, suite), session, bounds, steady(suite))
    calls = [chosen for count in batches for chosen in _calls(len(suite.pictures), count)]
    failures = [] if resize is None else _resizing(suite, resize)
    runs: list[_Run] = []
    for i, chosen in enumerate(calls):
        runs += judge.call(chosen)
        if i in (min(1, len(calls) - 1), len(calls) - 1):  # with another picture in between, and at the end
            failures += judge.asked.again()
    totals = judge.totals(runs)
    return EncoderReport(
        bounds=bounds,
        suite={
            "cases": sum(map(len, calls)), "pictures": [picture.name for picture in suite.pictures],
            "batches": list(batches), "calls": judge.asked.calls, "steady_from": judge.steady_from,
            "reference": suite.reference, "resizer": "not looked at" if resize is None else "compared",
        },
        metrics=totals,
        failures=(*failures, *bounds.violations(totals)),
        cases=tuple(run.result for run in runs),
    )  # fmt: skip


def steady(suite: EncoderSuite) -> float:
    """Return the stability from which masks count: fewer are steady in some models than a figure needs."""
    return steady_from(np.concatenate([one.stability.ravel() for picture in suite.pictures for one in picture.answers]))


def steady_from(stability: FloatArray) -> float:
    """Return the stability from which masks count, of these. Shapes: (masks,)."""
    every = np.sort(stability)
    return min(STEADY, float(every[-ceil(STEADY_SHARE * len(every))]))


def _calls(pictures: int, count: int) -> list[list[int]]:
    """Deal pictures out to calls of so many; the first ones fill the last call up."""
    return [[(start + i) % pictures for i in range(count)] for start in range(0, pictures, count)]


@dataclass
class _Asked:
    """Ask an encoder, and remember its first answer: the arrays themselves, which must not change, and copies."""

    encode: Encode
    suite: EncoderSuite
    calls: int = 0
    last: Feed = field(default_factory=dict)  # as the encoder handed it out
    first: tuple[Sequence[int], Outputs, Outputs] | None = None

    def ask(self, chosen: Sequence[int]) -> Outputs:
        """Return the outputs for some pictures.

        Raises: ParityError naming what keeps them from being compared; whatever the encoder raises.
        """
        self.calls += 1
        self.last = self.encode(self.suite.feed(chosen))
        outputs = {name: np.asarray(value) for name, value in self.last.items()}  # what lies on a GPU is fetched
        if problems := tensor_problems(image_outputs(self.suite.spec), outputs, len(chosen)):
            raise ParityError("; ".join(problems))
        if self.first is None:
            self.first = chosen, dict(self.last), {name: value.copy() for name, value in outputs.items()}
        return outputs

    def again(self) -> list[str]:
        """Ask the first question again. Gives what differs, and what changed after it was handed out."""
        if self.first is None:
            return []
        chosen, outputs, copies = self.first
        changed = _unlike(outputs, copies)  # first: asked again, a buffer that is used again holds the same
        try:
            other = _unlike(self.ask(chosen), copies)
        except Exception as error:
            return [f"asked again in call {self.calls}: {message(error)}"]
        return [
            *(f"{name} of the first call changed after it was handed out" for name in changed),
            *(f"{name} has other values when asked again, in call {self.calls}" for name in other),
        ]


def _unlike(outputs: Outputs, copies: Outputs) -> list[str]:
    return [name for name, value in copies.items() if not np.array_equal(outputs[name], value)]


class _Run(NamedTuple):
    """Hold what was found for a picture: its case, and its masks' IoU with their stability. Shapes: (masks,)."""

    result: CaseResult
    mask_iou: FloatArray
    stability: FloatArray


@dataclass
class _Judge:
    """Compare what an encoder makes of pictures, and a decoder of that, with the references' answers."""

    asked: _Asked
    session: Session
    bounds: EncoderBounds
    steady_from: float

    def call(self, chosen: Sequence[int]) -> list[_Run]:
        """Ask about some pictures in one call, and judge each."""
        try:
            outputs = self.asked.ask(chosen)
        except Exception as error:
            return [self._run(chosen, row, {}, [message(error)]) for row in range(len(chosen))]
        return [self._compare(chosen, row, outputs) for row in range(len(chosen))]

    def totals(self, runs: Sequence[_Run]) -> dict[str, float]:
        """Return what is judged over all pictures together: their steady masks; and all masks, for the report."""
        iou = np.concatenate([run.mask_iou for run in runs])
        counted = iou[np.concatenate([run.stability for run in runs]) >= self.steady_from]
        if not len(counted):
            return {}
        return {
            "mask_iou_mean": float(counted.mean()),
            "mask_iou_p05": float(np.percentile(counted, LOW_PERCENTILE)),
            "mask_iou_mean_all": float(iou.mean()),
            "mask_iou_p05_all": float(np.percentile(iou, LOW_PERCENTILE)),
        }

    def _compare(self, chosen: Sequence[int], row: int, outputs: Outputs) -> _Run:
        """Compare a picture's features, and the masks that the decoder makes of them."""
        picture = self.asked.suite.pictures[chosen[row]]
        features = {name: np.ascontiguousarray(value[row : row + 1]) for name, value in outputs.items()}
        apart = [difference(right, features[name]) for name, right in picture.features.items()]
        metrics = {
            "feature_error": max(one.error for one in apart),
            "feature_error_largest": max(one.largest for one in apart),
        }
        try:
            handed = {name: value[row : row + 1] for name, value in self.asked.last.items()}
            iou, score_error = mask_agreement(picture, handed, self.session)
        except Exception as error:
            return self._run(chosen, row, metrics, [f"the decoder: {message(error)}"])
        stability = np.concatenate([one.stability.ravel() for one in picture.answers])
        counted = iou[stability >= self.steady_from]
        metrics["iou_prediction_error"] = score_error
        if len(counted):
            metrics["mask_iou_case"] = float(counted.mean())
        return self._run(chosen, row, metrics, self.bounds.violations(metrics), iou, stability)

    def _run(
        self, chosen: Sequence[int], row: int, metrics: dict[str, float], failures: Sequence[str],
        iou: FloatArray = NONE, stability: FloatArray = NONE,
    ) -> _Run:  # fmt: skip
        picture = self.asked.suite.pictures[chosen[row]]
        prompts = [one.prompts["point_labels"].shape for one in picture.answers]
        result = CaseResult(
            name=picture.name + (f", {row + 1} of {len(chosen)}" if len(chosen) > 1 else ""),
            image=chosen[row],
            prompts=sum(count for count, _ in prompts),
            points=max(points for _, points in prompts),
            failures=tuple(failures),
            metrics=metrics,
            mask_iou=tuple(map(float, iou)),
            undecided_pixels=sum(int(one.undecided.sum()) for one in picture.answers),
        )
        return _Run(result, iou, stability)


def mask_agreement(picture: Picture, features: Feed, session: Session) -> tuple[FloatArray, float]:
    """Return each mask's IoU with the reference's, and the largest error of a predicted IoU.

    Raises: ParityError naming what keeps outputs from being compared; whatever the session raises.
    """
    spec, found, errors = session.spec, [], []
    session.set_image(features)
    for answers in picture.answers:
        outputs = session.decode({name: value.copy() for name, value in answers.prompts.items()})
        if problems := output_problems(spec, outputs, len(answers.above)):
            raise ParityError("; ".join(problems))
        above = outputs["low_res_masks"].reshape(answers.above.shape) > spec.mask_threshold
        found.append(mask_iou(above & ~answers.undecided, answers.above & ~answers.undecided).ravel())
        right = answers.scores["iou_predictions"].astype(np.float64)
        errors.append(float(np.abs(outputs["iou_predictions"] - right).max()))
    return np.concatenate(found), max(errors)


def _resizing(suite: EncoderSuite, resize: Resize) -> list[str]:
    """Return what is wrong with the resizer that users' pictures go through."""
    failures = []
    for picture in suite.pictures:
        try:
            found, dtype = resize(picture.photo.copy(), picture.frame), suite.spec.picture_type
            failures += resizing_problems(picture.name, found, picture.square, dtype)
        except Exception as error:
            failures.append(f"picture '{picture.name}' cannot be resized: {message(error)}")
    return failures
