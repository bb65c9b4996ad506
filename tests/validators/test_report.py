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
from stub_session import StubSession

from samx.errors import ArtifactError
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import sam1_spec
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS, bounds_for
from samx.validators.report import ParityReport, to_junit, to_table
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
    assert good.summary() == f"parity passed: {n} cases, fp32, stub on cpu, lowest mask IoU 1.00000"
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
