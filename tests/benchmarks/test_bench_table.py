"""The table says what was measured, with its parity beside it, and fits into 80 columns."""

from __future__ import annotations

import pytest
from bench_toys import MS, toy_report, toy_result, toy_subject
from rich.console import Console

from samx.benchmarks.bench_table import tables
from samx.benchmarks.results import BenchReport, Comparison


def drawn(report: BenchReport) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        for part in tables(report):
            console.print(part)
    return capture.get()


def row(text: str, *cells: str) -> str:
    (found,) = [line for line in text.splitlines() if all(cell in line.split() for cell in cells)]
    return found


def test_shows_time_spread_calls_throughput_ratio_and_parity() -> None:
    cells = row(drawn(toy_report()), "click", "b").split()
    assert cells == ["click", "b", "11.0", "1.00", "n/a", "3", "90.9", "2.00", "(1.90-2.10)"]


def test_says_where_it_ran_and_how_to_do_it_again() -> None:
    text = drawn(toy_report())
    for words in ("toy processor", "7 on cpu", "graph, stored", "samx bench a b", "toy images", "decoder only"):
        assert words in text


def test_warnings_and_gaps_are_shown() -> None:
    text = drawn(toy_report(partial="stopped by the user", flags=("the clock is too coarse",)))
    for words in ("NOT COMPLETE: stopped by the user", "the clock is too coarse", "throttled", "nothing is copied"):
        assert words in text


def test_noise_and_drift_are_marked() -> None:
    noisy, drifting = toy_result("a", (10, 20, 30)), toy_result("b", [10] * 20 + [10.7] * 20)
    text = drawn(toy_report(results=(noisy, drifting), ratios=()))
    assert "20.0!" in row(text, "click", "a")
    assert "~" in row(text, "click", "b")


def test_columns_that_say_nothing_are_left_out() -> None:
    text = drawn(toy_report(subjects=(toy_subject("a"),), results=(toy_result("a"),), ratios=()))
    for heading in ("subject  ", "faster", "mJ/prompt", "p99"):
        assert heading not in row(text, "scenario", "IQR")
    energy = {"value": 12.5, "unit": "mJ", "reason": None}
    peak = {"value": 600 * 2**20, "unit": "bytes", "reason": None}
    full = toy_result("a", [10] * 700, energy_mj=energy, peak_bytes=peak)
    cells = row(drawn(toy_report(subjects=(toy_subject("a"),), results=(full,), ratios=())), "click").split()
    assert cells == ["click", "10.0", "0.00", "10.0", "10.0", "700", "100.0", "12.5", "600.0"]


@pytest.mark.parametrize("name", ["a", "a-very-long-name-of-an-artifact-that-nobody-would-want-to-type-sam1-onnx"])
def test_fits_and_cuts_no_number(name: str) -> None:
    peak = {"value": 12_345 * 2**20, "unit": "bytes", "reason": None}
    energy = {"value": 12_345.6, "unit": "mJ", "reason": None}
    times = [123_456 + i for i in range(700)]
    results = tuple(
        toy_result(subject, times, phase="post_processing", scenario="everything", prompts=1024, peak_bytes=peak,
                   energy_mj=energy, warm_up_ns=MS)
        for subject in (name, "b")
    )  # fmt: skip
    ratio = Comparison("everything", "post_processing", name, "b", 1.0, 0.99, 1.01)
    text = drawn(toy_report(subjects=(toy_subject(name), toy_subject("b")), results=results, ratios=(ratio,)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for number in ("123806", "12346", "12345", "1.00 (0.99-1.01)"):
        assert number in text


def test_a_comparison_with_others_has_room_for_all_that_matters() -> None:
    names = ("sam1-demo-onnx", "meta", "samexporter", "huggingface", "pytorch", "pytorch-compiled")
    results = tuple(toy_result(name, [1234.5 + i for i in range(64)], prompts=64, scenario="batch64") for name in names)
    ratios = tuple(Comparison("batch64", "steady", names[0], name, 1.0, 0.99, 1.01) for name in names[1:])
    text = drawn(toy_report(subjects=tuple(map(toy_subject, names)), results=results, ratios=ratios, not_measured=()))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line for line in text.splitlines() if "1.00 (0.99-1.01)" in line]
    assert len(lines) == len(ratios)
    assert all("1266" in line and name[:8] in line for line, name in zip(lines, names[1:], strict=True))


def test_nothing_measured_is_said() -> None:
    assert "nothing was measured" in drawn(toy_report(results=(), ratios=(), partial="stopped"))


def test_markup_in_names_is_text() -> None:
    name = "[red]a"
    assert name in drawn(toy_report(subjects=(toy_subject(name),), results=(toy_result(name),), ratios=()))
