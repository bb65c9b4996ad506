"""A ParityReport for people (a rich table) and for CI servers (JUnit XML)."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from rich.table import Table

from samx.validators.bounds import AT_LEAST
from samx.validators.report import CaseResult, ParityReport

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters XML 1.0 cannot hold


def to_table(report: ParityReport) -> Table:
    """Show each metric's worst value, its bound and the case it comes from."""
    verdict = "passed" if report.passed else "failed"
    table = Table(title=f"Parity {verdict}: {report.subject} ({report.precision})", title_justify="left")
    for heading in ("metric", "worst", "bound", "case"):
        table.add_column(heading, justify="right" if heading in ("worst", "bound") else "left")
    for name, (value, case) in report.worst().items():
        bound = getattr(report.bounds, name)
        sign = "at least" if name in AT_LEAST else "at most"
        table.add_row(name, f"{value:.6g}", "not judged" if bound is None else f"{sign} {bound:g}", case)
    return table


def to_junit(report: ParityReport) -> str:
    """Write one test per case and one for the run as a whole; a case that is missing is a failure."""
    planned = int(report.suite["cases"])
    whole = list(report.failures)
    if planned != len(report.cases) or not report.cases:
        whole.append(f"{len(report.cases)} of {planned} planned cases were compared")
    if report.cases and not report.metrics and not whole:
        whole.append("no case could be compared")
    failed = sum(not case.passed for case in report.cases) + bool(whole)
    suite = ElementTree.Element(
        "testsuite", name=_clean(f"samx parity {report.subject}"), tests=str(len(report.cases) + 1),
        failures=str(failed), errors="0", skipped="0", timestamp=report.created,
    )  # fmt: skip
    _test(suite, "suite", whole)
    for case in report.cases:
        _test(suite, case.name, _case_failures(case))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _case_failures(case: CaseResult) -> list[str]:
    return [] if case.passed else list(case.failures) or ["the case was not compared"]


def _test(suite: ElementTree.Element, name: str, failures: list[str]) -> None:
    test = ElementTree.SubElement(suite, "testcase", classname="samx.parity", name=_clean(name))
    if failures:
        failure = ElementTree.SubElement(test, "failure", message=_clean(failures[0]))
        failure.text = _clean("\n".join(failures))


def _clean(message: str) -> str:
    return NOT_XML.sub("?", message)
