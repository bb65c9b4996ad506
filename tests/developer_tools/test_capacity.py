"""A disturbed measurement says nothing of a second processor, and the page has the table of its results."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tools import capacity
from tools.capacity import WAYS, busy_s, cost, gain, rates

ROOT = Path(__file__).parents[2]


def a_round(answered: int, seconds: float, cpu_s: float, workers: int = 1, others: float = 0.0) -> dict[str, Any]:
    return {"workers": [{"answered": answered, "s": seconds, "cpu_s": cpu_s}] * workers, "others": others}


def test_rates_are_those_of_all_workers_together() -> None:
    assert rates([a_round(10, 2.0, 2.0), a_round(10, 2.0, 2.0, workers=2)]) == [5.0, 10.0]


def test_a_cost_is_wall_time_and_processor_time_an_answer() -> None:
    assert cost([a_round(10, 2.0, 3.0, workers=2)]) == "100.0 (300.0)"


def test_a_disturbed_round_says_nothing_of_a_second_process() -> None:
    one, two = [a_round(10, 2.0, 2.0)], [a_round(10, 2.0, 2.0, workers=2)]
    assert gain(one, two) == "2.00"
    assert gain(one, [a_round(10, 4.0, 2.0, workers=2, others=0.9)]) == "disturbed"
    assert gain([*one, *one], [*two, a_round(10, 9.0, 2.0, workers=2, others=1.0)]) == "2.00"


def test_other_programs_are_seen() -> None:
    before, end = busy_s(), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        os.getpid()
    assert busy_s() - before > 0.3


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "results").glob("*-capacity.json")))
def test_the_page_has_the_tables_of_its_results(file: Path) -> None:
    document = json.loads(file.read_text())
    page = (ROOT / "docs" / "scaling.md").read_text()
    for line in capacity.table(document).splitlines()[2:]:
        assert line in page
    assert file.name in page


def test_results_were_kept() -> None:
    (file,) = (ROOT / "docs" / "results").glob("*-capacity.json")
    document = json.loads(file.read_text())
    assert {"vit-b-onnx", "hiera-t-onnx"} <= {entry["artifact"] for entry in document["artifacts"]}
    assert all(set(by_way) == set(WAYS) for entry in document["artifacts"] for by_way in entry["rounds"].values())
