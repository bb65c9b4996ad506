"""The report on an INT8 export: everything that is known, in numbers and in sentences, and the refusal."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from calibration_toys import toy_set
from rich.console import Console
from verdict_toys import Discs, grown, held, shrunk, verdict

from samx import console
from samx.artifacts import strict_json
from samx.artifacts.commit import write_file
from samx.benchmarks.summary import speed_facts
from samx.errors import ParityError
from samx.quantization.search import Budget, Found, Judged, Plan, Row
from samx.quantization.verdict import Int8Report, remedy

PLAN = Plan(integer=("upscaling 1",), stored=("token MLP", "IoU head"))
ROWS = (
    Row("upscaling 1", "integer", 0.012, 0.02, 300, 4000),
    Row("upscaling 1", "stored", 0.5, 0.5, 250, 0),  # not how it was chosen: names nobody
    Row("token MLP", "stored", 0.003, 0.001, 500, 0),
    Row("IoU head", "stored", 0.0, 0.0, 20, 0),
)
FOUND = Found(PLAN, Judged(0.985, 0.96, 310), 1000, ROWS, ("upscaling 2",))
ARITHMETIC = {"integer_multiply_adds": 4000, "constant_weight_multiply_adds": 9000}
SLOWER = speed_facts(1, 2, 64, 10.0, 12.0, 1000, 310)
FASTER = speed_facts(16, 2, 64, 10.0, 7.0, 1000, 310)
NO_SPEED = "Speed was not measured: there is no such machine here."


def report(session: Any = None, **changes: Any) -> Int8Report:
    fields: dict[str, Any] = {
        "calibration": toy_set().summary(),
        "budget": Budget(),
        "search": FOUND,
        "arithmetic": ARITHMETIC,
        "held_out": verdict(session or Discs()),
        "speed": {"measured": [SLOWER, FASTER], "reason": None},
    }
    return Int8Report(**{**fields, **changes})


def saved(found: Int8Report, path: Path) -> dict[str, Any]:
    write_file(path, found.to_bytes())
    facts: dict[str, Any] = dict(strict_json.parse(path.read_bytes(), "report"))
    return facts


def test_what_is_good_is_let_through() -> None:
    report().enforce()
    assert report().held_out.failures() == []


def test_what_is_not_is_refused_and_the_group_to_exclude_is_named() -> None:
    found = report(Discs(lambda logits: logits - 6))
    with pytest.raises(ParityError, match="INT8 is not good enough on held-out prompts: found mask_iou_mean") as caught:
        found.enforce()
    assert caught.value.exit_code == 3
    assert caught.value.report is found.held_out.parity
    assert "--exclude 'upscaling 1'" in str(caught.value)
    assert "'upscaling 1' costs most (0.0120 of mean IoU alone, integer)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_accuracy_alone_is_reason_enough() -> None:
    found = report(held_out=verdict(Discs(shrunk(0.4)), known=held(grown)))
    assert found.held_out.parity.passed
    with pytest.raises(ParityError, match="accuracy falls by"):
        found.enforce()


def test_a_session_that_breaks_off_is_refused_with_its_words() -> None:
    def broken(logits: Any) -> Any:
        raise RuntimeError("no such kernel")

    with pytest.raises(ParityError, match="no such kernel"):
        report(Discs(broken)).enforce()


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (PLAN, "upscaling 1"),
        (Plan(stored=("token MLP", "IoU head")), "token MLP"),
        (Plan(stored=("upscaling 1", "token MLP")), "upscaling 1"),
    ],
)
def test_the_remedy_names_what_costs_most_as_it_was_chosen(plan: Plan, named: str) -> None:
    assert f"--exclude '{named}'" in remedy(replace(FOUND, plan=plan), Budget())


def test_where_nothing_is_quantised_nothing_is_named() -> None:
    nothing = replace(FOUND, plan=Plan(), rows=())
    assert remedy(nothing, Budget()) == "Nothing was written."


def test_slower_is_said_in_so_many_words() -> None:
    slower, faster = report().sentences[-2:]
    assert slower.startswith("INT8 is SLOWER than float here: 12.00 against 10.00 ms a prompt")
    assert faster.startswith("INT8 is faster than float here: 7.00 against 10.00 ms a prompt")


def test_speed_that_was_not_measured_has_its_reason() -> None:
    found = report(speed={"measured": [], "reason": NO_SPEED})
    assert found.sentences[-1] == NO_SPEED
    assert found.to_json()["speed"] == {"measured": [], "reason": NO_SPEED}
    assert not any("float here" in line for line in found.sentences)


def test_people_read_masks_size_groups_and_accuracy() -> None:
    masks, size, accuracy, *_ = report().sentences
    assert masks == "INT8: mean mask IoU 1.0000, 5th percentile 1.0000 on 9 held-out prompts (toys)"
    assert size == (
        "Size: 31% of the float32 graph; integers for upscaling 1; 8-bit weights for token MLP, IoU head"
    )  # fmt: skip
    assert accuracy.startswith("Accuracy on 9 known regions: 1.0000")


def test_no_groups_are_called_nothing() -> None:
    found = report(search=replace(FOUND, plan=Plan()))
    assert "integers for nothing; 8-bit weights for nothing" in found.sentences[1]


def test_the_file_holds_everything(tmp_path: Path) -> None:
    found = report(budget=Budget(0.99, 0.975))
    facts = saved(found, tmp_path / "report.json")
    assert (facts["format"], facts["schema_version"]) == ("samx-int8-report", 1)
    assert facts["calibration"] == toy_set().summary()
    assert facts["budget"] == {"mean_iou": 0.99, "p05_iou": 0.975, "size_share": 0.45}
    assert facts["search"]["rows"] == [asdict(row) for row in ROWS]
    assert facts["search"]["plan"] == {"integer": ["upscaling 1"], "stored": ["token MLP", "IoU head"]}
    assert facts["search"]["gave_way"] == ["upscaling 2"]
    assert facts["arithmetic"]["integer_multiply_adds"] == 4000
    assert facts["held_out"]["passed"] is True
    assert facts["speed"]["measured"] == [SLOWER, FASTER]
    assert facts["speed"]["reason"] is None
    assert facts["sentences"] == found.sentences


def test_the_file_of_a_refused_export_says_so(tmp_path: Path) -> None:
    facts = saved(report(Discs(lambda logits: logits - 6)), tmp_path / "report.json")
    assert facts["held_out"]["passed"] is False
    assert facts["held_out"]["parity"]["failures"]


def test_a_number_that_is_none_is_not_written() -> None:
    broken = replace(FOUND, judged=Judged(float("nan"), 0.96, 310))
    with pytest.raises(ValueError, match="JSON"):
        report(search=broken).to_bytes()


def test_the_table_has_one_sign_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16 files a group may by chance come out better than it was."""
    rows = Row("upscaling 1", "integer", -0.0007, 0.02, 2048, 4000), ROWS[2]
    found = report(search=replace(FOUND, rows=rows))
    paper = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=paper, width=200))
    console.out.print(console._groups(found))
    better, worse = [line.split() for line in paper.getvalue().splitlines() if "yes" in line]
    assert {"+0.0007", "-0.0200", "2"} <= set(better)
    assert "-0.0030" in worse
