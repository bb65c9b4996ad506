"""What 'make clients' computes: the least IoU of a program's masks, its faults, its table; and the page that has it."""

from __future__ import annotations

import json
from pathlib import Path
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
    "median_ms": {"ours": 20.0, "theirs": 50.0},
}  # fmt: skip
FAULTS = [({"mask_iou": [1.0, 0.9998]}, "mask IoU 0.9998"), ({"mask_pixels": [[5], [0, 0]]}, "without a mask")]


def test_the_least_iou_of_all_masks_counts() -> None:
    one = np.zeros((2, 4, 4), bool)
    one[:, :2] = True
    other = one.copy()
    assert ask.iou(one, other) == 1
    other[1, 1] = False
    assert ask.iou(one, other) == 0.5
    assert ask.iou(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)) == 1


def test_a_line_of_the_table() -> None:
    assert programs.row(FOUND) == "| osam 1.0 | `osam` | 0.99995 | 20.0 | 50.0 | 2.50 |\n"


@pytest.mark.parametrize(("change", "said"), FAULTS)
def test_other_masks_and_no_masks_are_faults(change: dict[str, Any], said: str) -> None:
    assert programs.faults(FOUND) == []
    (fault,) = programs.faults({**FOUND, **change})
    assert said in fault


def test_programs_are_those_of_the_contracts_and_are_installed() -> None:
    listed = (ROOT / "requirements" / "programs.txt").read_text() + (ROOT / "Makefile").read_text()
    for program in programs.PROGRAMS:
        assert program.name in CONTRACTS[program.contract].programs
        assert program.family in CONTRACTS[program.contract].families
        assert f"{program.package}==" in listed or not program.package


def test_the_page_has_what_was_measured() -> None:
    assert programs.HEAD + "".join(map(programs.row, ROWS)) in PAGE
    assert [fault for found in ROWS for fault in programs.faults(found)] == []
