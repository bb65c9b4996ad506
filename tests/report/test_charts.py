"""Charts take their colours from the page, say what they show, and survive any name and any numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from xml.etree import ElementTree

import pytest
from report_toys import bench_report

from samx.benchmarks.report.bars import Mark, bars, intervals, roof, spark
from samx.benchmarks.report.distributions import distributions

REPORT = bench_report()
RESULT = REPORT.results[0]
NASTY = "$x_1$ <script>alert(1)</script> & \"'"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def charts() -> dict[str, str]:
    return {
        "distributions": distributions("click", [("A", "series-1", RESULT), ("B", "series-2", RESULT)])[0],
        "intervals": intervals("Ratios.", [Mark("click", (1.2, 1.1, 1.3), "good", "1.2")], (0.95, 1.05)),
        "bars": bars("Bars.", "ms", [("A", [("phase-1", 3.0), ("phase-2", 1.0)])]),
        "roof": roof("Roof.", 2e9, 1e9, [Mark("1", (5.5, 1e9), "series-1", "1 click")]),
        "spark": spark("Heat.", [0.0, 1.0, 2.0], [40.0, 41.0, 45.0]),
    }


@pytest.mark.parametrize("name", charts())
def test_a_chart_has_the_colours_of_the_page_only(name: str) -> None:
    svg = charts()[name]
    assert "var(--" in svg
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


@pytest.mark.parametrize("name", charts())
def test_a_chart_fits_into_a_page_with_others(name: str) -> None:
    svg = charts()[name]
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("viewBox")
    assert "<style" not in svg
    assert "http" not in svg
    assert "url(" not in svg
    assert {name for element in root.iter() for name in element.attrib} & {"id", "clip-path", "href"} == set()
    assert "use" not in {element.tag for element in root.iter()}


def test_the_page_chooses_the_font_and_not_matplotlib() -> None:
    style = resources.files("samx.benchmarks.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    assert re.search(r"\.chart text \{ font-family: inherit !important;", style)


def test_the_same_data_give_the_same_chart() -> None:
    assert charts() == charts()


def test_every_row_has_its_name_and_its_median() -> None:
    svg, _ = distributions("click", [("A \u00b7 fp32", "series-1", RESULT)])
    assert {"A \u00b7 fp32", f"{RESULT.summary.median_ms:.3g} ms"} <= set(texts(svg))
    assert "median" in (ElementTree.fromstring(svg).get("aria-label") or "")


def test_calls_beyond_the_axis_are_counted() -> None:
    ordinary = RESULT.samples_ns[0]
    slow = replace(RESULT, samples_ns=(*[ordinary + i for i in range(300)], ordinary * 1000))
    assert distributions("click", [("A", "series-1", slow)])[1].startswith("Beyond the axis: ")


@pytest.mark.parametrize(
    "samples", [(1_000_000,) * 20, (5,), (1, 10**12), tuple(range(10**6, 10**6 + 15)), (10**15, 10**15 + 1) * 20],
    ids=["all the same", "one", "far apart", "few", "a hair apart"],
)  # fmt: skip
def test_any_samples_can_be_drawn(samples: tuple[int, ...]) -> None:
    svg, _ = distributions("click", [("A", "series-1", replace(RESULT, samples_ns=samples))])
    assert "nan" not in svg.lower().replace("nano", "")
    assert len(texts(svg)) >= 3


def test_a_name_is_text_and_neither_markup_nor_mathematics() -> None:
    svg = bars("Bars.", "ms", [(NASTY[:30], [("phase-1", 1.0)])])
    assert NASTY[:30] in texts(svg)
    assert "<script" not in svg


def test_bars_of_nothing_can_be_drawn() -> None:
    assert "0 ms" in texts(bars("Bars.", "ms", [("A", [("phase-1", 0.0)])]))
