"""A report survives its file, a doctored one is refused, and its tables say what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from stub_session import StubSession, pooled

from samx.errors import ArtifactError
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import sam1_spec
from samx.validators.encoder_gate import judge_encoder
from samx.validators.encoder_suite import EncoderSuite, pixels
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS, bounds_for, encoder_bounds
from samx.validators.report import EncoderReport, ParityReport, to_junit, to_table
from samx.validators.suite import ParitySuite

SPEC = sam1_spec(image_size=128)


class Off(StubSession):
    """Be a little wrong, and not quite plain about it."""

    def decode(self, prompts: Feed) -> Outputs:
        outputs = super().decode(prompts)
        outputs["low_res_masks"] += np.float32(0.002)
        return outputs

    def placement(self) -> Placement:
        return Placement("stub", "cpu", {"cpu": 1}, {"versions": {"a": 1}, "path": Path("x"), "odd": "\x00<&"})


@pytest.fixture(scope="module")
def suite() -> ParitySuite:
    return ParitySuite.build(StubSession(SPEC))


@pytest.fixture(scope="module")
def good(suite: ParitySuite) -> ParityReport:
    return run_gate(StubSession(SPEC), suite, BOUNDS["fp32"], level="graph", subject="stub")


@pytest.fixture(scope="module")
def bad(suite: ParitySuite) -> ParityReport:
    return run_gate(Off(SPEC), suite, BOUNDS["fp32"], level="graph", subject="off \x00 <&>")


def test_report_survives_the_file(good: ParityReport, bad: ParityReport, tmp_path: Path) -> None:
    good.save(tmp_path / "report.json")
    assert ParityReport.from_bytes((tmp_path / "report.json").read_bytes(), "r") == good
    again = ParityReport.from_bytes(bad.to_bytes(), "r")
    assert again.all_failures() == bad.all_failures()
    assert not again.passed
    assert {"platform", "cpu", "python", "numpy", "samx"} <= set(good.environment)


def test_nonces_differ(good: ParityReport, bad: ParityReport) -> None:
    assert good.nonce != bad.nonce


def _first_case(data: dict[str, Any]) -> dict[str, Any]:
    case: dict[str, Any] = data["cases"][0]
    return case


DOCTORED: dict[str, Callable[[dict[str, Any]], object]] = {
    "verdict": lambda data: data.update(passed=False),
    "no cases": lambda data: data.update(cases=[]),
    "a case dropped": lambda data: data["cases"].pop(),
    "a case without metrics": lambda data: _first_case(data).update(metrics={}),
    "a metric out of bounds": lambda data: _first_case(data)["metrics"].update(mask_iou_min=0.5),
    "an overall metric out of bounds": lambda data: data["metrics"].update(mask_iou_mean=0.5),
    "an unknown metric": lambda data: data["metrics"].update(beauty=1.0),
    "a metric as text": lambda data: data["metrics"].update(mask_iou_mean="1"),
    "a failure added": lambda data: data["failures"].append("late"),
    "a bound dropped": lambda data: data["bounds"].pop("logit_error"),
    "a bound as text": lambda data: data["bounds"].update(logit_error="x"),
    "unknown level": lambda data: data.update(level="hope"),
    "unknown field": lambda data: data.update(more=1),
    "other schema": lambda data: data.update(schema_version=2),
    "suite without a count": lambda data: data["suite"].pop("cases"),
    "passed as text": lambda data: data.update(passed="true"),
}


@pytest.mark.parametrize("how", DOCTORED)
def test_doctored_report_is_refused(good: ParityReport, how: str) -> None:
    data = json.loads(good.to_bytes())
    DOCTORED[how](data)
    with pytest.raises(ArtifactError):
        ParityReport.from_bytes(json.dumps(data).encode(), "r")


def test_summary_and_worst(good: ParityReport, bad: ParityReport) -> None:
    n = len(good.cases)
    alone = f"parity passed: {n} cases, fp32, stub on cpu, lowest mask IoU 1.00000; no image encoder"
    assert good.summary() == alone
    assert bad.summary().startswith(f"parity failed: {n} of {n} cases, fp32, stub on cpu: ")
    assert replace(bad, suite={**bad.suite, "seed": 5}).summary().endswith("(seed 5)")
    value, case = bad.worst()["logit_error"]
    assert value == pytest.approx(0.002, rel=1e-2)
    assert case in {result.name for result in bad.cases}


def _junit(report: ParityReport) -> ElementTree.Element:
    return ElementTree.fromstring(to_junit(report))


def test_junit_counts(good: ParityReport, bad: ParityReport) -> None:
    assert _junit(good).attrib["failures"] == "0"
    assert len(_junit(good).findall("testcase")) == len(good.cases) + 1
    assert len(_junit(bad).findall("testcase/failure")) == int(_junit(bad).attrib["failures"]) > 0


@pytest.mark.parametrize("change", [{"cases": ()}, {"metrics": {}}, {"failures": ("x",)}, {"suite": {"cases": 99}}])
def test_junit_fails_when_the_report_does(good: ParityReport, change: dict[str, Any]) -> None:
    report = replace(good, **change)
    assert not report.passed
    assert int(_junit(report).attrib["failures"]) > 0


def test_table_shows_bounds_and_verdict(good: ParityReport, bad: ParityReport) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_table(good))
    console.print(to_table(replace(bad, bounds=bounds_for("int8"))))
    shown = console.export_text()
    assert "Parity passed: stub (fp32)" in shown
    assert "Parity failed" in shown
    assert "at least 0.9999" in shown
    assert "not judged" in shown


def test_smaller_weights_are_held_to_the_bounds_of_int8() -> None:
    assert bounds_for("fp16", {"weights": "linear8"}) == BOUNDS["int8"]
    assert bounds_for("fp16", {"weights": None}) == bounds_for("fp16") == BOUNDS["fp16"]


# --- With an image encoder ----------------------------------------------------------------------------------------


def _judged(gain: float) -> EncoderReport:
    suite = EncoderSuite.build(pooled(SPEC), StubSession(SPEC), 128)

    def encode(feed: Feed) -> Outputs:
        place = next(one for one in suite.pictures if (one.square == feed["picture"][0]).all()).frame
        found = pooled(SPEC)(pixels(np.asarray(feed["picture"][0]), place, SPEC))
        return {name: value * np.float32(gain) for name, value in found.items()}

    return judge_encoder(encode, StubSession(SPEC), suite, encoder_bounds("fp32", "fp32"))


@pytest.fixture(scope="module")
def both(good: ParityReport) -> ParityReport:
    return replace(good, encoder=_judged(1))


@pytest.fixture(scope="module")
def wrong_encoder(good: ParityReport) -> ParityReport:
    return replace(good, encoder=_judged(1.01))


def test_report_with_an_encoder_survives_the_file(both: ParityReport, wrong_encoder: ParityReport) -> None:
    for report in (both, wrong_encoder):
        assert ParityReport.from_bytes(report.to_bytes(), "r") == report
    assert both.passed
    assert both.encoder is not None
    assert both.summary().endswith("; encoder: 5 pictures, fp32, mean mask IoU 1.00000")


def test_encoder_that_failed_fails_the_report(good: ParityReport, wrong_encoder: ParityReport) -> None:
    assert not wrong_encoder.passed
    assert good.passed
    n = len(good.cases) + 5
    start = f"parity failed: 5 of {n} cases, fp32, stub on cpu: encoder: "
    assert wrong_encoder.summary().startswith(start)
    assert all(line.startswith("encoder: ") for line in wrong_encoder.all_failures())
    assert _junit(wrong_encoder).attrib["failures"] in ("5", "6")
    names = [test.attrib["name"] for test in _junit(wrong_encoder).findall("testcase")]
    assert len(names) == len(set(names)) == n + 2
    assert "encoder, square, a cat" in names


def test_table_shows_the_encoder_s_bounds(both: ParityReport) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_table(both))
    shown = console.export_text()
    assert "encoder, feature_error " in shown
    assert "at most 1e-05" in shown
    assert "encoder, mask_iou_mean_all" in shown


def _encoder(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda data: change(data["encoder"])


DOCTORED_ENCODER: dict[str, Callable[[dict[str, Any]], object]] = {
    "no pictures": _encoder(lambda found: found.update(cases=[])),
    "a picture dropped": _encoder(lambda found: found["cases"].pop()),
    "a picture without metrics": _encoder(lambda found: _first_case(found).update(metrics={})),
    "a metric out of bounds": _encoder(lambda found: _first_case(found)["metrics"].update(feature_error=0.1)),
    "an overall metric out of bounds": _encoder(lambda found: found["metrics"].update(mask_iou_mean=0.5)),
    "nothing measured over all": _encoder(lambda found: found.update(metrics={})),
    "a failure added": _encoder(lambda found: found["failures"].append("late")),
    "a bound dropped": _encoder(lambda found: found["bounds"].pop("feature_error")),
    "suite without a count": _encoder(lambda found: found["suite"].pop("cases")),
    "unknown field": _encoder(lambda found: found.update(more=1)),
    "no object": lambda data: data.update(encoder=[]),
}


@pytest.mark.parametrize("how", DOCTORED_ENCODER)
def test_doctored_encoder_is_refused(both: ParityReport, how: str) -> None:
    data = json.loads(both.to_bytes())
    DOCTORED_ENCODER[how](data)
    with pytest.raises(ArtifactError):
        ParityReport.from_bytes(json.dumps(data).encode(), "r")


def test_report_of_earlier_versions_has_no_encoder(good: ParityReport) -> None:
    data = json.loads(good.to_bytes())
    del data["encoder"]
    assert ParityReport.from_bytes(json.dumps(data).encode(), "r") == good


@pytest.mark.parametrize(
    ("precision", "decoder", "masks"), [("fp32", "fp32", 0.9999), ("fp32", "int8", 0.98), ("fp16", "fp32", 0.997)]
)
def test_masks_are_held_to_the_less_exact_of_encoder_and_decoder(precision: str, decoder: str, masks: float) -> None:
    bounds = encoder_bounds(precision, decoder)
    assert bounds.mask_iou_mean == masks
    assert bounds.feature_error == encoder_bounds(precision, "fp32").feature_error
