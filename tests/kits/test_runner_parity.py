"""The runner's numbers are samx's own to the last digit, on good outputs and on planted faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.kits.questions import parity_arrays, parity_rules
from samx.kits.runner import parity
from samx.models.session import Feed, Outputs
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.validators.cases import Case, parity_cases
from samx.validators.metrics import BOUNDS, bounds_for, expect, measure, suite_values
from samx.validators.suite import ParitySuite, output_problems

SPECS = {
    "sam1": sam1_spec(image_size=64),
    "sam2": sam2_spec(image_size=64),
    "single": sam1_spec(image_size=64, masks="single"),
    "masks": sam1_spec(image_size=64, mask_input=True),
}
CHECKPOINT = CheckpointEntry("toy.pth", "sam1", "5" * 64, 3)
Change = Callable[[Outputs], object]


def drawn(spec: DecoderSpec, case: Case, seed: int) -> Outputs:
    """Draw outputs as large as trained ones: blobs, so that a mask has an inside."""
    random, n = np.random.default_rng(seed), len(case.prompts["point_coords"])
    outputs = {}
    for tensor in spec.outputs:
        shape = [n if isinstance(size, str) else size for size in tensor.shape]
        outputs[tensor.name] = random.normal(0, 0.3, shape).astype(np.float32)
    masks = outputs["low_res_masks"]
    rows, columns = np.mgrid[: masks.shape[2], : masks.shape[3]] / masks.shape[2]
    centre = random.uniform(0.2, 0.8, (2, *masks.shape[:2], 1, 1))
    distance = np.hypot(rows - centre[0], columns - centre[1])
    outputs["low_res_masks"] = (masks * 0.2 + 10 * (0.3 - distance)).astype(np.float32)
    outputs["low_res_masks"][0, 0, 0, :2] = 0.0  # on the threshold: no side
    return outputs


def noisy(share: float) -> Change:
    def change(outputs: Outputs) -> None:
        for i, value in enumerate(outputs.values()):
            value += np.random.default_rng(i).normal(0, share, value.shape).astype(np.float32)

    return change


def swapped(outputs: Outputs) -> None:
    outputs["iou_predictions"][:] = outputs["iou_predictions"][:, ::-1]


def negated(name: str) -> Change:
    def change(outputs: Outputs) -> None:
        if name in outputs:
            outputs[name] *= -1

    return change


def one_pixel(outputs: Outputs) -> None:
    outputs["low_res_masks"][0, 0, 5, 5] *= -1


CHANGES: dict[str, Change] = {
    "none": lambda outputs: None,
    "rounding": noisy(1e-6),
    "half precision": noisy(1e-3),
    "noise": noisy(0.3),
    "rescaled": lambda outputs: outputs["low_res_masks"].__imul__(1.7),
    "shifted": lambda outputs: outputs["low_res_masks"].__iadd__(0.5),
    "one pixel": one_pixel,
    "another best mask": swapped,
    "inverted masks": negated("low_res_masks"),
    "object lost": negated("object_score_logits"),
    "empty masks": lambda outputs: outputs["low_res_masks"].__imul__(0),
}


def built(spec: DecoderSpec) -> ParitySuite:
    """Make a suite whose answers are drawn, and pass it through its file."""
    asked = parity_cases(spec)[:6]
    images = ({tensor.name: np.zeros([int(d) for d in tensor.shape], np.float32) for tensor in spec.image_inputs},) * 2
    expected = tuple(expect(spec, drawn(spec, case, i)) for i, case in enumerate(asked))
    live = ParitySuite(spec, images, tuple(asked), expected, "zeros", "drawn", None)
    return ParitySuite.load(live.to_bytes())


@pytest.fixture(scope="module", params=SPECS, ids=list(SPECS))
def suite(request: pytest.FixtureRequest) -> ParitySuite:
    return built(SPECS[request.param])


def rules_for(suite: ParitySuite, precision: str) -> dict[str, Any]:
    return parity_rules(Manifest("onnx", precision, suite.spec, CHECKPOINT), suite)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", CHANGES)
def test_the_numbers_are_samx_s_to_the_last_digit(suite: ParitySuite, name: str, precision: str) -> None:
    rules, stored, bounds = rules_for(suite, precision), parity_arrays(suite), bounds_for(precision)
    theirs, ours = [], []
    for i, (case, expected) in enumerate(zip(suite.cases, suite.expected, strict=True)):
        outputs = drawn(suite.spec, case, i)
        CHANGES[name](outputs)
        theirs.append(measure(suite.spec, expected, outputs, bounds))
        ours.append(parity.compare(rules, parity.part_of(stored, f"case{i}.out."), stored["pixels"], outputs))
        assert ours[-1]["values"] == theirs[-1].values
        assert tuple(ours[-1]["mask_iou"]) == theirs[-1].mask_iou
        assert ours[-1]["undecided"] == theirs[-1].undecided
        assert parity.violations(rules, ours[-1]["values"]) == bounds.violations(theirs[-1].values)
    assert parity.suite_values(rules, ours) == suite_values(theirs)
    assert parity.violations(rules, parity.suite_values(rules, ours)) == bounds.violations(suite_values(theirs))


def test_the_planted_faults_are_faults() -> None:
    suite = built(SPECS["sam2"])
    found = {}
    for name, change in CHANGES.items():
        outputs = drawn(suite.spec, suite.cases[0], 0)
        change(outputs)
        found[name] = bool(bounds_for("fp32").violations(
            measure(suite.spec, suite.expected[0], outputs, bounds_for("fp32")).values
        ))  # fmt: skip
    assert {name for name, faulty in found.items() if not faulty} == {"none", "rounding"}


def dropped(outputs: Outputs) -> None:
    del outputs["iou_predictions"]


def infinite(outputs: Outputs) -> None:
    outputs["low_res_masks"][0, 0, 0, 0] = np.inf


def added(outputs: Outputs) -> None:
    outputs["more"] = outputs["iou_predictions"]


def doubled(outputs: Outputs) -> None:
    outputs["iou_predictions"] = outputs["iou_predictions"].astype(np.float64)


def shortened(outputs: Outputs) -> None:
    outputs["low_res_masks"] = outputs["low_res_masks"][:, :, :-1]


def nan(outputs: Outputs) -> None:
    outputs["iou_predictions"][0] = np.nan


@pytest.mark.parametrize("change", [dropped, infinite, added, doubled, shortened, nan, CHANGES["none"]])
def test_what_cannot_be_compared_is_a_problem_for_both(change: Change) -> None:
    spec = SPECS["sam1"]
    outputs = drawn(spec, parity_cases(spec)[0], 0)
    change(outputs)
    shapes = {tensor.name: list(tensor.shape) for tensor in spec.outputs}
    ours, theirs = parity.output_problems(shapes, outputs, 1), output_problems(spec, outputs, 1)
    assert bool(ours) is bool(theirs) is (change is not CHANGES["none"])


def test_a_value_that_is_no_number_is_on_no_side() -> None:
    rules = rules_for(built(SPECS["sam1"]), "fp32")
    assert parity.violations(rules, {"mask_iou_mean": float("nan"), "logit_error": float("nan")}) == [
        "mask_iou_mean is nan, must be at least 0.9999", "logit_error is nan, must be at most 0.001",
    ]  # fmt: skip


def test_inputs_are_what_samx_would_ask(suite: ParitySuite) -> None:
    stored = parity_arrays(suite)
    for i, case in enumerate(suite.cases):
        asked: Feed = parity.part_of(stored, f"case{i}.in.")
        assert set(asked) == set(case.prompts)
        assert all(np.array_equal(asked[name], value) for name, value in case.prompts.items())
        assert {value.dtype for value in asked.values()} == {np.dtype(np.float32)}


def test_a_bound_that_is_not_judged_is_none_for_both() -> None:
    bounds = replace(bounds_for("int8"), mask_iou_mean=0.5)
    assert bounds.violations({"mask_iou_min": 0.0}) == []
    rules = rules_for(built(SPECS["sam1"]), "int8")
    assert parity.violations(rules, {"mask_iou_min": 0.0}) == []
