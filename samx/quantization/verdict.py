"""What an INT8 export's masks come to on held-out prompts: beside PyTorch's, and beside what is known to be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from samx.artifacts.strict_json import Document
from samx.models.session import Outputs, Session
from samx.quantization.search import Budget
from samx.validators.bounds import Bounds, bounds_for
from samx.validators.gate import run_gate
from samx.validators.metrics import BoolArray, mask_iou
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

if TYPE_CHECKING:
    from samx.quantization.held_out import HeldOut

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


def judge(session: Session, reference: Session, held: HeldOut, budget: Budget, subject: str) -> Verdict:
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
