"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Any

import samx
from samx.artifacts.manifest import utc_now
from samx.benchmarks.report import runs, tables
from samx.benchmarks.report.bars import spark
from samx.benchmarks.report.baseline import RULE, BaselineComparison
from samx.benchmarks.report.pictures import pictures
from samx.benchmarks.report.svg import EXTRA, SERIES
from samx.benchmarks.report.tables import headline, title, unknown_limits
from samx.benchmarks.summary import counted
from samx.extras import require

PURPOSE = "writing a report's page"
TEMPLATES = "templates"
FILTERS = {
    "short": runs.short, "percent": runs.percent, "counted": counted, "spaced": runs.spaced, "when": runs.when,
}  # fmt: skip


def page(shown: Sequence[runs.Run], comparison: BaselineComparison | None) -> str:
    """Write the page.

    Raises: MissingExtraError.
    """
    return str(environment(__package__).get_template("page.html.j2").render(_content(shown, comparison)))


def environment(package: str) -> Any:
    """Return what fills the templates of a package in the style of all pages.

    Raises: MissingExtraError.
    """
    jinja2, markup = require("jinja2", EXTRA, PURPOSE), require("markupsafe", EXTRA, PURPOSE)
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(partial(_source, package)), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    made.globals |= {"svg": markup.Markup, "spark": spark, "css": markup.Markup(_source(__package__, "page.css"))}
    made.filters |= FILTERS
    return made


def _content(shown: Sequence[runs.Run], comparison: BaselineComparison | None) -> dict[str, Any]:
    table = headline(shown)
    doubts = [(run, doubt) for run in shown for doubt in run.doubts]
    return {
        "title": title(table),
        "written": utc_now(),
        "version": samx.__version__,
        "runs": shown,
        "entries": runs.all_entries(shown),
        "colour": {head: i % SERIES + 1 for i, head in enumerate(runs.precisions(shown))},
        "headline": table,
        "graves": [pair for pair in doubts if pair[1]["grave"]],
        "notes": [pair for pair in doubts if not pair[1]["grave"]],
        "comparison": comparison,
        "rule": RULE,
        "why": runs.WHY_NO_PERCENTILE,
        "details": tables,
        "contains": f"A figure contains the {' or '.join(sorted({run.report.figures for run in shown}))}.",
        "unknown": unknown_limits(shown),
        "pictures": pictures(shown, () if comparison is None else comparison.changes),
    }


def _source(package: str, name: str) -> str:
    return resources.files(package).joinpath(TEMPLATES).joinpath(name).read_text(encoding="utf-8")


def _visible(value: object) -> object:
    """Keep what cannot be seen out of the page; markup is ours."""
    return runs.plain(value) if type(value) is str else value
