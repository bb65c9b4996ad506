"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import samx
from samx.artifacts.manifest import utc_now
from samx.benchmarks.report import details, limits, pictures, words
from samx.benchmarks.report.baseline import RULE, BaselineComparison
from samx.benchmarks.report.charts.sparks import spark
from samx.benchmarks.report.charts.svg import EXTRA, SERIES
from samx.benchmarks.report.headline import agreement, graver, headline, proof, title
from samx.benchmarks.report.runs import Run, all_entries, precisions
from samx.extras import require

PURPOSE = "writing a report's page"
TEMPLATES = "templates"


def page(runs: Sequence[Run], comparison: BaselineComparison | None) -> str:
    """Write the page.

    Raises: MissingExtraError.
    """
    jinja2, markup = require("jinja2", EXTRA, PURPOSE), require("markupsafe", EXTRA, PURPOSE)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    environment.globals |= {"svg": markup.Markup, "spark": spark, "css": markup.Markup(_source("page.css"))}
    environment.filters |= {
        name: getattr(words, name) for name in ("short", "share", "percent", "counted", "spaced", "when")
    }
    return str(environment.get_template("page.html.j2").render(_content(runs, comparison)))


def _content(runs: Sequence[Run], comparison: BaselineComparison | None) -> dict[str, Any]:
    table, heads = headline(runs), precisions(runs)
    return {
        "title": title(table),
        "written": utc_now(),
        "version": samx.__version__,
        "runs": runs,
        "entries": all_entries(runs),
        "colour": {head: i % SERIES + 1 for i, head in enumerate(heads)},
        "headline": table,
        "agreement": agreement,
        "proof": proof,
        "graver": graver,
        "graves": [(run, doubt) for run in runs for doubt in run.doubts if doubt.grave],
        "notes": [(run, doubt) for run in runs for doubt in run.doubts if not doubt.grave],
        "comparison": comparison,
        "rule": RULE,
        "why": words.WHY_NO_PERCENTILE,
        "details": details,
        "limits": limits,
        "pictures": _pictures(runs, comparison),
    }


def _pictures(runs: Sequence[Run], comparison: BaselineComparison | None) -> dict[str, list[pictures.Picture]]:
    return {
        "latency": pictures.latency_pictures(runs),
        "ratios": pictures.ratio_pictures(runs),
        "changes": [] if comparison is None else pictures.change_pictures(comparison.changes),
        "phases": [*pictures.phase_pictures(runs), *pictures.memory_pictures(runs)],
        "energy": pictures.energy_pictures(runs),
        "roofs": pictures.roof_pictures(runs),
    }


def _source(name: str) -> str:
    return resources.files("samx.benchmarks.report").joinpath(TEMPLATES, name).read_text(encoding="utf-8")


def _visible(value: object) -> object:
    """Keep what cannot be seen out of the page; markup is ours."""
    return words.plain(value) if type(value) is str else value
