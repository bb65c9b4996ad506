"""The verdict on an INT8 export: what passes, and each way to fail, with sessions whose answers are known."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from calibration_toys import features
from verdict_toys import BUDGET, CENTRES_PX, EXPORTED, Discs, click, grown, held, shrunk, target, verdict

from samx.models.session import Outputs, Placement
from samx.quantization import verdict as module
from samx.quantization.rollout import HeldOut
from samx.quantization.search import Budget
from samx.quantization.verdict import MOST_ACCURACY_LOST, NO_TRUTH, Accuracy, best, int8_bounds
from samx.validators.metrics import BOUNDS, mask_iou


def test_the_same_masks_pass_both_comparisons() -> None:
    found = verdict(Discs())
    assert found.failures() == []
    assert found.parity.passed
    assert found.parity.subject == "toy, held-out prompts"
    assert len(found.parity.cases) == len(CENTRES_PX)
    assert found.accuracy == Accuracy(1.0, 1.0, len(CENTRES_PX))
    assert "9 known regions: 1.0000 mean IoU, PyTorch's is 1.0000" in found.accuracy.sentence()


def test_the_facts_are_plain_data() -> None:
    facts = json.loads(json.dumps(verdict(Discs()).to_json(), allow_nan=False))
    assert facts["passed"] is True
    assert facts["accuracy"] == {"reference": 1.0, "int8": 1.0, "masks": 9, "reason": None, "lost": 0.0}
    broken = json.loads(json.dumps(verdict(Discs(shrunk(8))).to_json(), allow_nan=False))
    assert broken["passed"] is False


def test_damaged_masks_fail_parity() -> None:
    found = verdict(Discs(lambda logits: logits - 6), known=held(lambda _: None))
    assert not found.parity.passed
    assert found.failures()[0].startswith("mask_iou_mean is 0.")
    assert "must be at least 0.98" in found.failures()[0]


def test_best_masks_that_get_worse_fail_although_parity_holds() -> None:
    """One mask of three shrinks, and it is the one that people take: the mean over all masks hides that."""
    found = verdict(Discs(shrunk(0.4)), known=held(grown))
    assert found.parity.passed, found.parity.summary()
    assert found.accuracy.lost is not None
    assert MOST_ACCURACY_LOST < found.accuracy.lost < 0.05
    (line,) = found.failures()
    assert line == f"accuracy falls by {found.accuracy.lost:.4f} of mean IoU, must be at most 0.01"


def test_masks_that_nobody_takes_cost_no_accuracy() -> None:
    found = verdict(Discs(shrunk(0.2, mask=0)), known=held(grown))
    assert found.parity.metrics["mask_iou_mean"] < 1
    assert found.failures() == []
    assert found.accuracy.lost == 0


def test_best_masks_that_get_better_pass() -> None:
    found = verdict(Discs(shrunk(-0.4)), known=held(grown))
    assert found.accuracy.lost is not None
    assert found.accuracy.lost < -MOST_ACCURACY_LOST
    assert found.failures() == []


@pytest.mark.parametrize(("int8", "fails"), [(0.7401, False), (0.7399, True), (float("nan"), True)])
def test_accuracy_may_fall_by_a_hundredth(int8: float, fails: bool) -> None:
    found = replace(verdict(Discs()), accuracy=Accuracy(0.75, int8, 9))
    assert bool(found.failures()) is fails


def test_without_known_regions_the_reason_is_said() -> None:
    found = verdict(Discs(), known=held(lambda _: None))
    assert found.failures() == []
    assert found.accuracy == Accuracy(None, None, 0, NO_TRUTH)
    assert found.accuracy.lost is None
    assert found.accuracy.sentence() == f"Accuracy was not measured: {NO_TRUTH}"


def test_only_known_regions_are_counted() -> None:
    found = verdict(
        Discs(), known=held(lambda asked: target(asked) if asked["point_coords"][0, 0, 0] == CENTRES_PX[0][0] else None)
    )
    assert found.accuracy == Accuracy(1.0, 1.0, 3)


def test_a_larger_min_iou_refuses_what_the_gate_takes() -> None:
    session, known = Discs(shrunk(0.4)), held(lambda _: None)
    mean = verdict(session, known=known).parity.metrics["mask_iou_mean"]
    assert 0.98 < mean < 0.999
    assert verdict(session, known=known).failures() == []
    tight = verdict(session, Budget(mean_iou=0.999, p05_iou=0.95), known)
    assert tight.failures() == [f"mask_iou_mean is {mean:.6g}, must be at least 0.999"]


def test_the_budget_moves_two_bounds_only() -> None:
    assert int8_bounds(BUDGET) == BOUNDS["int8"]
    assert int8_bounds(Budget(0.99, 0.975)) == replace(BOUNDS["int8"], mask_iou_mean=0.99, mask_iou_p05=0.975)


def test_one_value_that_is_not_finite_fails() -> None:
    def one_nan(logits: Any) -> Any:
        logits[0, 0, 0, 0] = np.nan
        return logits

    found = verdict(Discs(one_nan))
    assert len(found.failures()) == len(CENTRES_PX)
    assert "low_res_masks" in found.failures()[0]
    assert "finite" in found.failures()[0]


@dataclass
class Fault:
    """Break off at one question."""

    at: int
    asked: int = 0

    def __call__(self, logits: Any) -> Any:
        self.asked += 1
        if self.asked == self.at:
            raise RuntimeError("out of memory")
        return logits


@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_session_that_raises_fails_and_no_accuracy_is_claimed(at: int) -> None:
    """The masks before and after would match up with the wrong regions."""
    found = verdict(Discs(Fault(at)))
    assert [line for line in found.failures() if "RuntimeError: out of memory" in line]
    assert found.accuracy == Accuracy(None, None, 0, "not every prompt was answered")


def test_nothing_asked_is_not_passed() -> None:
    empty = HeldOut((features(EXPORTED, 0),), (), (), "nothing")
    found = verdict(Discs(), known=empty)
    assert "the suite has no case" in found.failures()[0]
    assert found.accuracy.reference is None


def test_the_reference_is_no_candidate() -> None:
    reference = Discs()
    found = module.verdict(reference, reference, held(), BUDGET, "toy")
    assert found.failures()[0] == "the candidate is the reference itself"
    assert found.accuracy == Accuracy(None, None, 0, "not every prompt was answered")


class Elsewhere(Discs):
    """Say that the work fell back to another device."""

    def placement(self) -> Placement:
        return Placement("discs", "npu", {"cpu": 1}, {})


def test_a_silent_fallback_fails() -> None:
    assert "asked for npu, ran 1 operations on cpu" in verdict(Elsewhere()).failures()[0]


class Other(Discs):
    """Decode for another export."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(EXPORTED, masks="single")


def test_another_spec_fails() -> None:
    assert "another spec" in verdict(Other()).failures()[0]


def test_the_best_mask_is_that_of_the_highest_predicted_iou() -> None:
    above = np.array([[[True, False], [False, True]], [[True, True], [False, False]]])
    outputs: Outputs = {"iou_predictions": np.array([[0.1, 0.9], [0.8, 0.3]], np.float32)}
    assert best(above, outputs).tolist() == [[False, True], [True, True]]


def test_the_planted_truth_is_near_the_best_mask() -> None:
    """Without this the accuracy above would measure the toys."""
    asked = click(64, 64)
    iou = float(mask_iou(target(asked).ravel(), grown(asked).ravel()))
    assert 0.9 < iou < 1
