"""What 'make clients' computes: the least IoU of a program's masks, its faults, its table; and the page that has it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samx.contracts.table import CONTRACTS
from tools.programs import __main__ as programs
from tools.programs import ask

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ROWS = json.loads((ROOT / "docs" / "results" / "2026-11-28-programs.json").read_text())["rows"]
FOUND: dict[str, Any] = {
    "program": "osam", "version": "1.0", "contract": "osam", "mask_iou": [1.0, 0.99995], "mask_pixels": [[5], [0, 7]],
    "median_ms": {"ours": 20.0, "theirs": 50.0}, "run_ms": {"ours": 10.0, "theirs": 39.0},
}  # fmt: skip
FAULTS = [
    ({"mask_iou": [1.0, 0.9998]}, "mask IoU 0.9998"), ({"mask_pixels": [[5], [0, 0]]}, "without a mask"),
    ({"unasked_iou": [0.8, 0.99995]}, "to no effect"),
]  # fmt: skip


def test_the_least_iou_of_all_masks_counts() -> None:
    one = np.zeros((2, 4, 4), bool)
    one[:, :2] = True
    other = one.copy()
    assert ask.iou(one, other) == 1
    other[1, 1] = False
    assert ask.iou(one, other) == 0.5
    assert ask.iou(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)) == 1


def test_a_line_of_the_table() -> None:
    assert programs.row(FOUND) == "| osam 1.0 | `osam` | 0.99995 | 20.0 | 50.0 | 2.50 | 10.0 | 39.0 | 3.90 |\n"
    alone = {key: value for key, value in FOUND.items() if key != "run_ms"}
    wanted = "| osam 1.0 | `osam`, a mask handed back | 0.99995 | 20.0 | 50.0 | 2.50 | - | - | - |\n"
    assert programs.row({**alone, "again": True}) == wanted
    assert programs.HEAD.splitlines()[0].count("|") == programs.HEAD.splitlines()[1].count("|") == wanted.count("|")


@pytest.mark.parametrize(("change", "said"), FAULTS)
def test_other_masks_and_no_masks_are_faults(change: dict[str, Any], said: str) -> None:
    assert programs.faults({**FOUND, "unasked_iou": [0.8, 0.9]}) == []
    (fault,) = programs.faults({**FOUND, **change})
    assert said in fault


class Clock:
    """Stand for the time, and for a runtime's session whose runs take 10 ms of it."""

    now_s = 0.0

    def run(self, names: Any, feed: Any) -> Any:
        self.pass_ms(10)
        return [feed]

    def pass_ms(self, ms: float) -> None:
        type(self).now_s += ms / 1000


def test_the_runtimes_part_of_a_click_is_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: Clock.now_s)
    monkeypatch.setattr(Clock, "run", Clock.run)  # put back after it
    spent, session = ask.watched(Clock), Clock()

    def click(*prompt: Any) -> Any:
        session.pass_ms(20)  # the program's own
        return [session.run(None, {}) for _ in range(2)]

    assert session.run(None, {"x": 1}) == [{"x": 1}]
    assert spent == pytest.approx([10])
    assert ask.timed({"ours": click, "theirs": session.run}, [(None, {})], 3, spent) == {
        "median_ms": {"ours": 40, "theirs": 10}, "run_ms": {"ours": 20, "theirs": 10},
        "own_ms": {"ours": 20, "theirs": 0},
    }  # fmt: skip


class Predictor:
    """Stand for sam2-onnx's: three masks, of which the second is the best."""

    def __init__(self, session: Any) -> None:
        self.asked: list[dict[str, Any]] = []

    def set_image(self, rgb: Any) -> None:
        self.picture = rgb

    def predict(
        self, point_coords: Any = None, point_labels: Any = None, box: Any = None, mask_input: Any = None
    ) -> Any:
        self.asked.append({"points": point_coords, "labels": point_labels, "box": box, "mask": mask_input})
        return (
            np.zeros((3, 4, 4), np.float32),
            np.array([0.1, 0.9, 0.2], np.float32),
            np.arange(3 * 4.0).reshape(3, 2, 2),
        )


def test_sam2_onnx_is_handed_its_best_mask_back(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("sam2_onnx")
    vars(package).update(OnnxImagePredictor=Predictor, Sam2OnnxSession=lambda **paths: paths)
    monkeypatch.setitem(sys.modules, "sam2_onnx", package)
    monkeypatch.setitem(sys.modules, "sam2_onnx.types", package)  # put back after it
    asked = ask.OfSam2Onnx("sam2", "encoder.onnx", "decoder.onnx", np.zeros((4, 4, 3), np.uint8))
    mask = asked.best([(1, 2)], [1])
    np.testing.assert_array_equal(mask, [[[4, 5], [6, 7]]])
    asked([(1, 2), (3, 4)], [1, 0], mask)
    asked([(1, 2), (3, 4)], [2, 3])
    first, second, box = asked.model.asked
    assert first["mask"] is None
    assert second["mask"] is mask
    assert second["labels"].dtype == np.int64
    assert box["box"].tolist() == [1, 2, 3, 4]
    assert box["points"] is None


def test_a_module_of_types_has_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "of_types", ModuleType("of_types"))
    ask.untyped("of_types")
    assert sys.modules["of_types"].Array | None


def test_programs_are_those_of_the_contracts_and_are_installed() -> None:
    listed = (ROOT / "requirements" / "programs.txt").read_text() + (ROOT / "Makefile").read_text()
    for program in programs.PROGRAMS:
        assert program.name in CONTRACTS[program.contract].programs
        assert program.family in CONTRACTS[program.contract].families
        assert f"{program.package}==" in listed or not program.package


def test_the_page_has_what_was_measured() -> None:
    assert programs.HEAD + "".join(map(programs.row, ROWS)) in PAGE
    assert [fault for found in ROWS for fault in programs.faults(found)] == []
