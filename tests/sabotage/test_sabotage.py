"""Every rule of the parity gate, broken on purpose: the gate must fail, with live and with stored answers."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_sessions import ON_CPU, SPECS, FaultySession, ToySession, logits_of

from samx.errors import ParityError
from samx.models.session import Feed, Outputs, Placement
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

FORMS = ("live", "stored")


@dataclass(frozen=True)
class Bench:
    """Hold a family's honest session and its suite in both forms."""

    honest: ToySession
    suites: dict[str, ParitySuite]


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    made = {}
    for family, spec in SPECS.items():
        reference = ToySession(spec)
        live = ParitySuite.build(reference)
        file = tmp_path_factory.mktemp(family) / "suite.npz"
        live.save(file)
        stored = ParitySuite.load(file.read_bytes())
        made[family] = Bench(ToySession(spec, reference.memory), {"live": live, "stored": stored})
    return made


@pytest.fixture(params=SPECS)
def bench(request: pytest.FixtureRequest, benches: dict[str, Bench]) -> Bench:
    return benches[request.param]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def judge(session: Any, suite: ParitySuite, precision: str = "fp32", **asked: Any) -> ParityReport:
    report = run_gate(session, suite, BOUNDS[precision], level="graph", **asked)
    assert ParityReport.from_bytes(report.to_bytes(), "report") == report
    return report


def failures(report: ParityReport) -> str:
    assert not report.passed
    return "\n".join(report.all_failures())


# --- Nothing is broken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", BOUNDS)
def test_honest_session_passes(bench: Bench, form: str, precision: str) -> None:
    report = judge(bench.honest, bench.suites[form], precision, runtime="toy", device="cpu")
    assert report.passed, report.all_failures()
    assert report.summary().startswith("parity passed")
    assert report.suite["form"] == form
    assert {"low": report.worst()["mask_iou_min"][0], "high": report.worst()["logit_error"][0]} == {"low": 1, "high": 0}


# --- The answers are broken -------------------------------------------------------------------------------------


def spoil(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Outputs], Outputs]:
    """Replace one output by what the function makes of it."""
    return lambda outputs: {**outputs, name: change(outputs[name])}


def in_place(change: Callable[[Outputs], object]) -> Callable[[Outputs], Outputs]:
    def spoiled(outputs: Outputs) -> Outputs:
        change(outputs)
        return outputs

    return spoiled


def put(outputs: Outputs, name: str, place: Any, value: Any) -> None:
    outputs[name][place] = value


def swap_best_with_worst(iou: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = np.arange(len(iou))
    best, worst = iou.argmax(1), iou.argmin(1)
    iou[rows, best], iou[rows, worst] = iou[rows, worst], iou[rows, best]
    return iou


def flip_region(outputs: Outputs) -> None:
    logits_of(outputs)[0, 0, 8:12, 8:12] *= -1


MASKS, IOU, SCORE = "low_res_masks", "iou_predictions", "object_score_logits"
BROKEN_ANSWERS: dict[str, tuple[Callable[[Outputs], Any], str]] = {
    "output missing": (lambda outputs: {MASKS: outputs[MASKS]}, "output iou_predictions is missing"),
    "output unknown": (lambda outputs: {**outputs, "extra": outputs[IOU]}, "output extra is not in the spec"),
    "nothing returned": (lambda outputs: None, "must be a dict of arrays"),
    "a list returned": (lambda outputs: list(outputs.values()), "must be a dict of arrays"),
    "shape lacks a mask": (spoil(MASKS, lambda masks: masks[:, :-1]), "low_res_masks has shape"),
    "shape lacks a prompt": (spoil(IOU, lambda iou: iou[:-1]), "iou_predictions has shape"),
    "shape broadcasts": (spoil(MASKS, lambda masks: masks[:1, :1]), "low_res_masks has shape"),
    "shape upscaled": (spoil(MASKS, lambda masks: masks.repeat(2, 2).repeat(2, 3)), "low_res_masks has shape"),
    "float64": (spoil(MASKS, lambda masks: masks.astype(np.float64)), "has type float64"),
    "float16": (spoil(MASKS, lambda masks: masks.astype(np.float16)), "has type float16"),
    "masked array": (spoil(MASKS, lambda masks: masks.view(np.ma.MaskedArray)), "has type MaskedArray"),
    "list for an array": (spoil(IOU, lambda iou: iou.tolist()), "has type list"),
    "one NaN": (in_place(lambda out: put(out, MASKS, (0, 0, 1, 0), np.nan)), "1 values that are not finite"),
    "one infinity": (in_place(lambda out: put(out, MASKS, (-1, -1, -1, -1), np.inf)), "1 values that are not finite"),
    "NaN score": (in_place(lambda out: put(out, IOU, (0, 0), np.nan)), "iou_predictions has 1 values"),
    "all NaN": (spoil(MASKS, lambda masks: masks * np.float32(np.nan)), "not finite"),
    "all zero": (spoil(MASKS, lambda masks: masks * 0), "mask_iou_min"),
    "planes swapped": (spoil(MASKS, lambda masks: masks[:, [1, 0, 2]]), "mask_iou_min"),
    "masks transposed": (spoil(MASKS, lambda masks: masks.swapaxes(2, 3)), "mask_iou_min"),
    "masks shifted by a pixel": (spoil(MASKS, lambda masks: np.roll(masks, 1, 3)), "mask_iou_min"),
    "region flipped": (in_place(flip_region), "mask_iou_min"),
    "logits scaled": (spoil(MASKS, lambda masks: masks * np.float32(1.01)), "logit_error"),
    "logits offset": (spoil(MASKS, lambda masks: masks + np.float32(1.5e-3)), "logit_error is"),
    "IoU columns swapped": (spoil(IOU, lambda iou: iou[:, ::-1]), "iou_prediction_error"),
    "IoU offset": (spoil(IOU, lambda iou: iou + np.float32(2e-4)), "iou_prediction_error"),
    "best mask changed": (spoil(IOU, swap_best_with_worst), "best_mask_changes"),
    "first prompt's answer for all": (spoil(MASKS, lambda masks: masks[:1].repeat(len(masks), 0)), "mask_iou_min"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN_ANSWERS)
def test_broken_answers(bench: Bench, form: str, fault: str) -> None:
    answers, said = BROKEN_ANSWERS[fault]
    report = judge(FaultySession(bench.honest, answers=answers), bench.suites[form])
    assert said in failures(report)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda score: -score, "object_score_flips"),
        (lambda score: score + np.float32(2e-3), "object_score_error"),
        (lambda score: score[::-1], "object_score_error"),
    ],
)
def test_broken_object_score(benches: dict[str, Bench], form: str, change: Any, said: str) -> None:
    bench = benches["sam2"]
    report = judge(FaultySession(bench.honest, answers=spoil(SCORE, change)), bench.suites[form])
    assert said in failures(report)


@pytest.mark.parametrize(
    ("precision", "fault"),
    [(precision, fault) for precision in ("fp16", "int8")
     for fault in ("planes swapped", "masks shifted by a pixel", "first prompt's answer for all", "all zero",
                   "IoU columns swapped", "best mask changed", "one NaN")],
)  # fmt: skip
def test_gross_faults_fail_at_every_precision(bench: Bench, form: str, precision: str, fault: str) -> None:
    answers, _ = BROKEN_ANSWERS[fault]
    assert failures(judge(FaultySession(bench.honest, answers=answers), bench.suites[form], precision))


def test_rescaled_logits_fail_at_low_precision(bench: Bench, form: str) -> None:
    doubled = spoil(MASKS, lambda masks: masks * np.float32(2))
    for precision in ("fp16", "int8"):
        report = judge(FaultySession(bench.honest, answers=doubled), bench.suites[form], precision)
        assert "logit_error_relative" in failures(report)


def test_every_position_of_the_upscaling_is_compared(bench: Bench, form: str) -> None:
    """An error below the threshold at one of the 16 positions in each cell shows in the stored form too."""
    for position in range(16):
        y, x = divmod(position, 4)

        def raise_some(outputs: Outputs, y: int = y, x: int = x) -> None:
            logits_of(outputs)[:, :, y::4, x::4] += 2e-3

        report = judge(FaultySession(bench.honest, answers=in_place(raise_some)), bench.suites[form])
        assert "logit_error is" in failures(report)


# --- The prompts or the image are not used ----------------------------------------------------------------------


def labels_as(change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Feed], Feed]:
    return lambda feed: {**feed, "point_labels": np.ascontiguousarray(change(feed["point_labels"]))}


def without_padding(feed: Feed) -> Feed:
    kept = feed["point_labels"][0] != -1
    return {**feed, "point_coords": feed["point_coords"][:, kept], "point_labels": feed["point_labels"][:, kept]}


def without_boxes(feed: Feed) -> Feed:
    kept = feed["point_labels"][0] < 2
    return {**feed, "point_coords": feed["point_coords"][:, kept], "point_labels": feed["point_labels"][:, kept]}


IGNORED: dict[str, Callable[[Feed], Feed]] = {
    "labels in another order": labels_as(lambda labels: labels[:, ::-1]),
    "background points as foreground": labels_as(lambda labels: np.where(labels == 0, 1, labels).astype(np.float32)),
    "padding ignored": without_padding,
    "padding as a background point": labels_as(lambda labels: np.abs(np.minimum(labels, 0)) * 0 + labels.clip(0)),
    "boxes ignored": without_boxes,
    "box corners exchanged": labels_as(lambda labels: np.where(labels > 1, 5 - labels, labels).astype(np.float32)),
    "mask prompts ignored": lambda feed: {**feed, "has_mask_input": feed["has_mask_input"] * 0},
    "mask prompts always used": lambda feed: {**feed, "has_mask_input": feed["has_mask_input"] * 0 + 1},
    "first flag for all masks": lambda feed: {**feed, "has_mask_input": feed["has_mask_input"][:1].repeat(
        len(feed["has_mask_input"]))},
    "x and y exchanged": lambda feed: {**feed, "point_coords": np.ascontiguousarray(feed["point_coords"][..., ::-1])},
    "half a pixel off": lambda feed: {**feed, "point_coords": feed["point_coords"] + np.float32(0.5)},
    "prompts in another order": lambda feed: {**feed, "point_coords": np.roll(feed["point_coords"], 1, 0)},
    "last point dropped": lambda feed: {**feed, "point_coords": feed["point_coords"][:, 1:],
                                        "point_labels": feed["point_labels"][:, 1:]},
}  # fmt: skip


@pytest.mark.parametrize("fault", IGNORED)
def test_ignored_prompts(bench: Bench, form: str, fault: str) -> None:
    report = judge(FaultySession(bench.honest, prompts=IGNORED[fault]), bench.suites[form])
    assert "mask_iou_min" in failures(report)


class StaleImage(FaultySession):
    """Keep the first image for ever."""

    def set_image(self, image: Feed) -> None:
        self.image = self.image or image


def test_stale_image(bench: Bench, form: str) -> None:
    report = judge(StaleImage(bench.honest), bench.suites[form])
    assert "mask_iou_min" in failures(report)
    assert {case.image for case in report.cases if not case.passed} == {1, 2}


# --- The verdict would rest on nothing --------------------------------------------------------------------------


def test_zero_cases(bench: Bench, form: str) -> None:
    empty = replace(bench.suites[form], cases=(), expected=())
    assert "no case" in failures(judge(bench.honest, empty))


def test_the_reference_does_not_judge_itself(bench: Bench) -> None:
    live = bench.suites["live"]
    assert "reference itself" in failures(judge(live.reference_session, live))


class Borrower(ToySession):
    """Return the arrays that the suite holds."""

    def __init__(self, suite: ParitySuite) -> None:
        self.spec = suite.spec
        shape = (-1, self.spec.masks_out, self.spec.mask_size, self.spec.mask_size)
        self.held = [{MASKS: e.logits.reshape(shape), **e.scores} for e in suite.expected]

    def decode(self, prompts: Feed) -> Outputs:
        return self.held.pop(0)


def test_the_references_own_arrays_are_no_answer(bench: Bench) -> None:
    assert "the reference's own array" in failures(judge(Borrower(bench.suites["live"]), bench.suites["live"]))


def test_another_decoders_suite(benches: dict[str, Bench], form: str) -> None:
    assert "another spec" in failures(judge(benches["sam1"].honest, benches["sam2"].suites[form]))


@dataclass
class Failing(FaultySession):
    """Raise instead of answering: always, or from the n-th call on."""

    honest: ToySession
    error: Exception
    calls: int = 0
    asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__init__(self.honest)

    def decode(self, prompts: Feed) -> Outputs:
        self.asked += 1
        if self.asked > self.calls:
            raise self.error
        return super().decode(prompts)


@pytest.mark.parametrize("error", [RuntimeError("no kernel\nfor P=0"), unittest.SkipTest("later"), MemoryError()])
def test_exception_is_a_failed_case(bench: Bench, form: str, error: Exception) -> None:
    report = judge(Failing(bench.honest, error), bench.suites[form])
    assert type(error).__name__ in failures(report)
    assert len(report.cases) == len(bench.suites[form].cases)
    assert not any(case.passed for case in report.cases)


def test_one_skipped_case_is_a_failure(bench: Bench, form: str) -> None:
    cases = len(bench.suites[form].cases)
    report = judge(Failing(bench.honest, unittest.SkipTest("later"), calls=cases - 1), bench.suites[form])
    assert "SkipTest: later" in failures(report)
    assert sum(case.passed for case in report.cases) == cases - 1


def test_a_report_that_lacks_cases_does_not_pass(bench: Bench, form: str) -> None:
    report = judge(bench.honest, bench.suites[form])
    assert not replace(report, cases=report.cases[1:]).passed
    assert not replace(report, cases=()).passed
    assert not replace(report, metrics={}).passed
    uncompared = replace(report.cases[0], metrics={})
    assert not replace(report, cases=(uncompared, *report.cases[1:])).passed


class FailingImage(FaultySession):
    """Fail to take an image, once; a gate that forgets this would go on with the one before."""

    tries = 0

    def set_image(self, image: Feed) -> None:
        self.tries += 1
        if self.tries == 2:
            raise RuntimeError("encoder lost")
        super().set_image(image)


def test_failed_image_is_a_failed_case_and_is_set_again(bench: Bench, form: str) -> None:
    report = judge(FailingImage(bench.honest), bench.suites[form])
    assert "encoder lost" in failures(report)
    assert sum(not case.passed for case in report.cases) == 1


def test_session_cannot_alter_the_suite(bench: Bench, form: str) -> None:
    def wipe(feed: Feed) -> Feed:
        for value in feed.values():
            value[...] = 0
        return feed

    assert failures(judge(FaultySession(bench.honest, prompts=wipe), bench.suites[form]))
    assert judge(bench.honest, bench.suites[form]).passed


# --- It ran somewhere else --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (Placement("toy", "cuda", {"cpu": 9}, {}), "asked for cuda, ran 9 operations on cpu"),
        (Placement("toy", "cuda", {"cuda": 9, "cpu": 1}, {}), "1 operations on cpu"),
        (Placement("toy", "cuda", {}, {}), "nothing that was counted"),
        (Placement("toy", "cuda", {"cuda": 0}, {}), "0 operations on cuda"),
        (Placement("toy", "cpu", {"cpu": 9}, {}), "opened for cpu, asked for cuda"),
        (Placement("other", "cuda", {"cuda": 9}, {}), "ran in other, asked for toy"),
    ],
)
def test_silent_fallback(bench: Bench, form: str, placement: Placement, said: str) -> None:
    session = FaultySession(bench.honest, placement=placement)
    assert said in failures(judge(session, bench.suites[form], runtime="toy", device="cuda"))


class LateFallback(FaultySession):
    """Leave the device for one case in the middle."""

    asked = 0

    def placement(self) -> Placement:
        self.asked += 1
        return replace(ON_CPU, operations={"other": 1}) if self.asked == 3 else ON_CPU


def test_fallback_of_a_single_case(bench: Bench, form: str) -> None:
    report = judge(LateFallback(bench.honest), bench.suites[form])
    assert [case.passed for case in report.cases].count(False) == 1


class Placeless(FaultySession):
    def placement(self) -> Placement:
        raise RuntimeError("profile lost")


def test_unknown_placement(bench: Bench, form: str) -> None:
    assert "profile lost" in failures(judge(Placeless(bench.honest), bench.suites[form]))


# --- The reference itself is broken -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["one NaN", "all zero", "output missing", "float64"])
def test_a_broken_reference_makes_no_suite(bench: Bench, fault: str) -> None:
    with pytest.raises(ParityError, match="cannot answer"):
        ParitySuite.build(FaultySession(bench.honest, answers=BROKEN_ANSWERS[fault][0]))


def test_suite_is_read_from_any_folder(bench: Bench, tmp_path: Path) -> None:
    size = bench.suites["live"].save(tmp_path / "again.npz")
    assert size == (tmp_path / "again.npz").stat().st_size
    assert bench.suites["stored"].save(tmp_path / "twice.npz") == size
    assert (tmp_path / "twice.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
