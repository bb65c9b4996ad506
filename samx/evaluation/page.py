"""The page of an accuracy report: one HTML file that needs nothing else."""

from __future__ import annotations

from samx.benchmarks.report.page import environment
from samx.evaluation.labels import REASONS
from samx.evaluation.report import METRICS, NAMES, AccuracyReport
from samx.evaluation.shown import Shown


def page(report: AccuracyReport, shown: Shown) -> str:
    """Write the page.

    Raises: MissingExtraError.
    """
    template = environment(__package__).get_template("accuracy.html.j2")
    columns = {name: NAMES[name] for name in METRICS}
    text: str = template.render(report=report, shown=shown, columns=columns, reasons=REASONS)
    return text
