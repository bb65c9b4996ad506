"""Numbers keep their meaning when they are written short."""

from __future__ import annotations

import pytest

from samx.benchmarks.report.runs import elide, percent, places, plain, share, short, times, when
from samx.benchmarks.summary import counted


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0004234, "0.000423"), (0.4234, "0.423"), (11.04, "11.0"), (99.96, "100.0"), (1234.5, "1\u202f234"), (0, "0"),
     (float("inf"), "inf"), (-2.5, "-2.50")],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(value: float, written: str) -> None:
    assert short(value) == written


def test_only_full_agreement_reads_as_one() -> None:
    assert (share(1.0), share(0.99999), share(0.98765)) == ("1.0000", "0.9999", "0.9876")


def test_changes_have_a_sign() -> None:
    assert (percent(1.1), percent(0.9)) == ("+10.0\u202f%", "\u221210.0\u202f%")


def test_long_names_keep_both_ends() -> None:
    assert elide("sam2.1-hiera-large-onnx-int8", 16) == "sam2.1-h\u2026nx-int8"
    assert elide("short", 16) == "short"


def test_what_cannot_be_seen_is_taken_out() -> None:
    assert plain("a\x00b\ud800c\u202ed\ne") == "a?b?c?d?e"


def test_placements_are_words() -> None:
    assert places({"cuda": 300, "cpu": 4}) == "300 on cuda, 4 on cpu"
    assert places(None) == "not told"


def test_counts_and_times_are_words() -> None:
    assert (counted(1, "call"), counted(2, "call"), times(1.5)) == ("1 call", "2 calls", "1.50\u00d7")


def test_a_time_is_a_date_and_a_time_of_day_and_anything_else_stays() -> None:
    assert when("2026-01-02T03:04:05+00:00") == "2026-01-02 03:04 UTC"
    assert when("yesterday") == "yesterday"
