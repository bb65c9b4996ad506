"""What an INT8 export's masks come to on held-out prompts: beside PyTorch's, and beside what is known to be right.

Int8Report is everything that is known about an INT8 export, as one JSON file of the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from samx.artifacts.strict_json import Document
from samx.errors import ParityError
from samx.models.session import Outputs, Session
from samx.quantization.search import Budget, Found, worst
from samx.validators.gate import run_gate
from samx.validators.metrics import BoolArray, Bounds, bounds_for, mask_iou
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

if TYPE_CHECKING:
    from samx.quantization.rollout import HeldOut

MOST_ACCURACY_LOST = 0.01  # of mean IoU with what is known to be right
NO_TRUTH = "these images come without regions that are known to be right"


@dataclass(frozen=True)
class Accuracy(Document):
    """Record the mean IoU of best masks with what was asked for; None and the reason where nobody knows it."""

    DERIVED = ("lost",)

    reference: float | None
    int8: float | None
    masks: int
    reason: str | None = None

    @property
    def lost(self) -> float | None:
        """What INT8 costs."""
        return None if self.reference is None or self.int8 is None else self.reference - self.int8

    def sentence(self) -> str:
        """Return it as a sentence for people."""
        if self.reference is None or self.int8 is None:
            return f"Accuracy was not measured: {self.reason}"
        return f"Accuracy on {self.masks} known regions: {self.int8:.4f} mean IoU, PyTorch's is {self.reference:.4f}"


@dataclass(frozen=True)
class Verdict(Document):
    """Record both comparisons on held-out prompts."""

    DERIVED = ("passed",)

    parity: ParityReport
    accuracy: Accuracy

    @property
    def passed(self) -> bool:
        """Whether INT8 may be used."""
        return not self.failures()

    def failures(self) -> list[str]:
        """Return what is wrong; nothing, if INT8 may be used."""
        found = [] if self.parity.passed else self.parity.all_failures() or ["not every prompt was compared"]
        lost = self.accuracy.lost
        if lost is not None and not lost <= MOST_ACCURACY_LOST:
            found.append(f"accuracy falls by {lost:.4f} of mean IoU, must be at most {MOST_ACCURACY_LOST:g}")
        return found


def verdict(session: Session, reference: Session, held: HeldOut, budget: Budget, subject: str) -> Verdict:
    """Ask an INT8 session every held-out prompt, once, for both comparisons."""
    suite = ParitySuite.build(reference, held.images, held.cases, held.source)
    chosen: list[BoolArray] = []

    def keep(outputs: Outputs) -> None:
        above = outputs["low_res_masks"] > suite.spec.mask_threshold
        chosen.append(best(above.reshape(*above.shape[:2], -1), outputs))

    bounds = int8_bounds(budget)
    parity = run_gate(session, suite, bounds, level="graph", subject=f"{subject}, held-out prompts", keep=keep)
    return Verdict(parity, _accuracy(suite, chosen, held.truth))


def int8_bounds(budget: Budget) -> Bounds:
    """Return INT8's bounds, tightened to what the user allows."""
    return replace(bounds_for("int8"), mask_iou_mean=budget.mean_iou, mask_iou_p05=budget.p05_iou)


def best(above: BoolArray, scores: Outputs) -> BoolArray:
    """Return each prompt's mask of the highest predicted IoU. Shapes: (N, M, K), predictions (N, M) -> (N, K)."""
    chosen = scores["iou_predictions"].argmax(axis=1)
    return above[np.arange(len(above)), chosen]


def _accuracy(suite: ParitySuite, chosen: Sequence[BoolArray], truth: Sequence[BoolArray | None]) -> Accuracy:
    if len(chosen) != len(suite.cases):
        return Accuracy(None, None, 0, "not every prompt was answered")
    known = [(i, target) for i, target in enumerate(truth) if target is not None]
    if not known:
        return Accuracy(None, None, 0, NO_TRUTH)
    theirs = [_right(best(suite.expected[i].above, suite.expected[i].scores), target) for i, target in known]
    ours = [_right(chosen[i], target) for i, target in known]
    return Accuracy(float(np.mean(theirs)), float(np.mean(ours)), len(known))


def _right(masks: BoolArray, target: BoolArray) -> float:
    return float(mask_iou(masks, target.reshape(len(target), -1)).mean())


@dataclass(frozen=True)
class Int8Report(Document):
    """Record the search's table, the verdict on held-out prompts, and what INT8 gains here."""

    HEADER = {"format": "samx-int8-report", "schema_version": 1}
    NOTES = ("sentences",)

    calibration: Mapping[str, Any]
    budget: Budget
    search: Found
    arithmetic: Mapping[str, Any]
    held_out: Verdict
    speed: Mapping[str, Any]  # `measured` here, or the `reason` why not

    def enforce(self) -> None:
        """Refuse an export that is not good enough.

        Raises: ParityError naming the worst group and what to exclude.
        """
        failures = self.held_out.failures()
        if failures:
            raise ParityError(
                "INT8 is not good enough on held-out prompts", found="; ".join(failures[:2]),
                fix=remedy(self.search, self.budget), report=self.held_out.parity,
            )  # fmt: skip

    @property
    def sentences(self) -> list[str]:
        """What people should know."""
        found, parity = self.search, self.held_out.parity
        reason = self.speed["reason"]
        return [
            f"INT8: mean mask IoU {parity.metrics['mask_iou_mean']:.4f}, 5th percentile "
            f"{parity.metrics['mask_iou_p05']:.4f} on {len(parity.cases)} held-out prompts "
            f"({parity.suite['image_source']})",
            f"Size: {found.judged.bytes / found.float_bytes:.0%} of the float32 graph; "
            f"integers for {', '.join(found.plan.integer) or 'nothing'}; "
            f"8-bit weights for {', '.join(found.plan.stored) or 'nothing'}",
            self.held_out.accuracy.sentence(),
            *(str(measured["sentence"]) for measured in self.speed["measured"]),
            *([reason] if reason else []),
        ]


def remedy(found: Found, budget: Budget) -> str:
    """Return what to leave in floating point, as a sentence."""
    row = worst(found.plan, found.rows, budget)
    if row is None:
        return "Nothing was written."
    return (
        f"Nothing was written. '{row.group}' costs most ({row.mean_iou_lost:.4f} of mean IoU alone, {row.how}): "
        f"leave it in floating point with --exclude '{row.group}', or calibrate on more images."
    )
